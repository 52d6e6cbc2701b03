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
from pathlib import Path

from cell_queue import Cell, result_of
from command import exit_with, run_study, study_parser
from front_stopping_cells import SWEEPS, TrialProtocol, train_trial

RECORDS = Path(__file__).parent / "records" / "front_stopping.json"
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
    """Run the cells, or replay them; 1 where one failed."""
    options = _options()
    protocol = TINY if options.tiny else TrialProtocol()
    chosen = cells(options.sweeps, options.trials, protocol)
    return _summary(chosen, options, protocol) if options.summary else run_study(chosen, options)


def _summary(chosen: Sequence[Cell], options: argparse.Namespace, protocol: TrialProtocol) -> int:
    from front_stopping_replay import records
    from front_stopping_summary import draw, markdown, replayed

    results = [result for cell in chosen if (result := result_of(cell, options.out)) is not None]
    file = RECORDS
    options.out.mkdir(parents=True, exist_ok=True)
    if results:
        file = options.out / "records.json"
        file.write_text(records(results, asdict(protocol)))
    rows = replayed(file, options.orders)
    text = markdown(rows, options.orders)
    (options.out / "front_stopping.md").write_text(text)
    draw(rows, options.out / "front_stopping.png")
    print(text)
    return 0


def _options() -> argparse.Namespace:
    parser = study_parser(__doc__, summary="front_stopping.md and front_stopping.png")
    parser.add_argument(
        "--sweeps",
        nargs="+",
        choices=SWEEPS,
        default=list(SWEEPS),
        help="of those of the study (default: all)",
    )
    parser.add_argument("--trials", type=int, default=16, help="of each sweep, its first (default 16)")
    parser.add_argument(
        "--orders",
        type=int,
        default=20,
        help="with --summary: orders of arrival for each number of workers (default 20)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
