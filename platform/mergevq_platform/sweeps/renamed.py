"""Names in the pickles of sweeps that earlier versions stored, so that these sweeps still open and go on."""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import resolve_name

# A module, or `module:attribute`, as a pickle may name it -> where it is now.
RENAMED = {
    "mergevq_platform.curves": "mergevq_platform.evaluation.curve",
    "mergevq_platform.generator_report": "mergevq_platform.evaluation.generator_report",
    "mergevq_platform.pareto": "mergevq_platform.figures.pareto",
    "mergevq_platform.sweeps.driver:_explored": "mergevq_platform.sweeps.tuning:_explored",
    "mergevq_platform.sweeps.driver:_label": "mergevq_platform.sweeps.tuning:_label",
    "mergevq_platform.sweeps.driver:_suggested": "mergevq_platform.sweeps.tuning:_suggested",
    "mergevq_platform.sweeps.objectives:Reference": "mergevq_platform.sweeps.objectives:UntrainedPoint",
    "mergevq_platform.sweeps.space:Uniform": "mergevq_platform.sweeps.space:RealRange",
    "mergevq_platform.sweeps.trial:Place": "mergevq_platform.sweeps.stored:SweepSettings",
}


def know_former_names() -> None:
    """Let the former names stand for what they have become, in this process: Ray Tune, too, unpickles by name."""
    for former, now in RENAMED.items():
        module, _, attribute = former.partition(":")
        if attribute:
            setattr(import_module(module), attribute, resolve_name(now))
        else:
            sys.modules.setdefault(module, import_module(now))
