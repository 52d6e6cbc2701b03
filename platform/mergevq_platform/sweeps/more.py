"""More trials for a sweep that has ended: a round of its own, in which the search goes on where it was."""

from __future__ import annotations

from dataclasses import replace

from mergevq.errors import InputError
from mergevq_platform.sweeps.closing import recorded_status
from mergevq_platform.sweeps.definition import Grid, Random, Sweep, Tpe
from mergevq_platform.sweeps.stored import SweepSettings


def with_more(sweep: Sweep, count: int, settings: SweepSettings) -> Sweep:
    """The stored sweep with `count` more choices of its search. Raises `InputError` where it has none, and while trials are left."""
    if not isinstance(sweep.search, Random | Tpe):
        why = (
            "a grid has all of its combinations: begin one over more options, or with --seeds"
            if isinstance(sweep.search, Grid)
            else "a population takes no new members: begin a larger one"
        )
        raise InputError(f"--more {count} means nothing to sweep '{settings.name}': {why}")
    if recorded_status(settings.run(settings.name).directory) != "FINISHED":
        raise InputError(
            f"sweep '{settings.name}' has trials left: go on with them first, mergevq sweep --resume {settings.name}"
        )
    search = replace(sweep.search, trials=sweep.search.trials + count)
    return replace(sweep, search=search, rounds=(*sweep.rounds, sweep.num_trials))
