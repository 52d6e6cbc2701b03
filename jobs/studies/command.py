"""The command line that all studies share: run the cells of a folder, or summarise what is there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cell_queue import Cell, run_cells
from mergevq.errors import InputError


def study_parser(description: str | None, *, summary: str) -> argparse.ArgumentParser:
    """A parser with the options of every study; `summary` names the files of --summary."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells' results")
    parser.add_argument(
        "--processes", type=int, default=0, help="processes side by side (default 0: this one)"
    )
    parser.add_argument(
        "--limit-seconds", type=float, help="end what is not done by then; a later call does it"
    )
    parser.add_argument("--tiny", action="store_true", help="few images and steps: only whether it runs")
    parser.add_argument("--summary", action="store_true", help=f"write {summary} of what is there")
    return parser


def add_counts_and_seeds(
    parser: argparse.ArgumentParser, *, counts: Sequence[int], seeds: int, seeds_help: str
) -> None:
    """Add the options of a study whose cells differ in kept count and seed; `counts` and `seeds` are defaults."""
    listed = " ".join(map(str, counts))
    parser.add_argument(
        "--counts", nargs="+", type=int, default=list(counts), help=f"kept counts (default {listed})"
    )
    parser.add_argument("--seeds", type=int, default=seeds, help=f"{seeds_help} (default {seeds})")


def run_study(cells: Sequence[Cell], options: argparse.Namespace) -> int:
    """Do what is missing of the cells, and say how far it came; 1 where a cell failed."""
    progress = run_cells(cells, options.out, processes=options.processes, limit_seconds=options.limit_seconds)
    print(
        f"{len(progress.done)} cells done, {len(progress.failed)} failed, {len(progress.left)} left: {options.out}"
    )
    return 1 if progress.failed else 0


def exit_with(main: Callable[[], int]) -> None:
    """End the process with the status of `main`, or with its one-line error."""
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(str(error))
