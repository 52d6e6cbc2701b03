"""Savings of a forked sweep: the steps of the trunk that its trials share, trained once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mergevq_platform.recipe import ForkConfig
from mergevq_platform.storage import forks
from mergevq_platform.sweeps.finished import Finished

TRUNK_COST = "trunk.json"  # of a trunk that a sweep trained: its steps and CPU seconds


def savings(finished: Sequence[Finished]) -> str | None:
    """One sentence on the steps that a trunk saved the finished trials; None where they have none."""
    trunk = shared_trunk(finished)
    if trunk is None:
        return None
    whole = sum(trial.steps for trial in finished)
    done = trained_steps(finished)
    return (
        f"trials go on from {forks.name_of(trunk)}: {done:,} steps trained, the trunk's {trunk.step:,} once, in place of {whole:,} "
        f"({done / whole:.0%})"
    )


def shared_trunk(finished: Sequence[Finished]) -> ForkConfig | None:
    """The trunk that the trials were forked from; None where they were trained whole."""
    fork = finished[0].recipe.get("fork") if finished else None
    return ForkConfig(**fork) if fork else None


def trained_steps(finished: Sequence[Finished]) -> int:
    """The optimizer steps of all trials, those of a shared trunk counted once."""
    trunk = shared_trunk(finished)
    own = trunk.step if trunk else 0
    return own + sum(trial.steps - own for trial in finished)


def trunk_cpu_seconds(trunk: ForkConfig) -> float | None:
    """The CPU seconds of a trunk that a sweep trained; None where no one measured them."""
    path = Path(trunk.run).parent / TRUNK_COST
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    return float(stored["cpu_seconds"]) if stored["steps"] == trunk.step else None
