"""What workers, the run's actor and the command line import at its start: nothing that takes seconds and that only some of them use."""

from __future__ import annotations

import subprocess
import sys

import pytest

DRAWING_AND_TIMM = ("timm", "torchvision", "matplotlib", "plotly", "scipy.stats", "sklearn")


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("mergevq_platform.evaluation", (*DRAWING_AND_TIMM, "mlflow", "ray.train", "ray.tune")),
        ("mergevq_platform.distributed.worker", (*DRAWING_AND_TIMM, "mlflow", "ray.tune")),
        ("mergevq_platform.distributed.run_actor", (*DRAWING_AND_TIMM, "torch", "ray.train", "ray.tune")),
        ("mergevq_platform.cli", (*DRAWING_AND_TIMM, "torch", "ray", "mlflow")),
    ],
)
def test_a_process_does_not_import_what_it_may_never_use(module: str, spared: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print(*(name for name in {spared!r} if name in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []
