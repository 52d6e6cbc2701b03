"""How much of a sweep's front is left when trials are stopped early? Recorded sweeps, replayed under many schedulers.

python jobs/studies/front_stopping.py --out DIR              train every trial to its end; again: what is missing
python jobs/studies/front_stopping.py --out DIR --processes 16 --limit-seconds 150      on a GPU that processes share
python jobs/studies/front_stopping.py --out DIR --tiny       does it run here? seconds
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from cell_queue import Cell
from command import exit_with, run_study, study_parser
from front_stopping_cells import SWEEPS, TrialProtocol, train_trial

TINY = TrialProtocol(train_images=48, val_images=24, neighbours_of=36, steps=2, rungs=2, batch=12)


def cells(sweeps: Sequence[str], trials: int, protocol: TrialProtocol) -> list[Cell]:
    """A sweep after the other."""
    return [
        Cell(
            name=f"{sweep}_{trial:02d}",
            run=partial(train_trial, sweep=sweep, trial=trial, protocol=protocol),
            settings={**asdict(protocol), "sweep": sweep, "trial": trial, "choice": asdict(choice)},
        )
        for sweep in sweeps
        for trial, choice in enumerate(SWEEPS[sweep][:trials])
    ]


def main() -> int:
    """Run the cells; 1 where one failed."""
    options = _options()
    protocol = TINY if options.tiny else TrialProtocol()
    return run_study(cells(options.sweeps, options.trials, protocol), options)


def _options() -> argparse.Namespace:
    parser = study_parser(__doc__, summary="front_stopping.md")
    parser.add_argument(
        "--sweeps",
        nargs="+",
        choices=SWEEPS,
        default=list(SWEEPS),
        help="of those of the study (default: all)",
    )
    parser.add_argument("--trials", type=int, default=16, help="of each sweep, its first (default 16)")
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
