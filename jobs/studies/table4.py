"""Does the linear probe rise as fewer tokens are kept, when one tokenizer is trained for every kept count? (Paper, Table 4.)

    python jobs/studies/table4.py --out DIR                      train and measure; again: what is missing
    python jobs/studies/table4.py --out DIR --processes 8 --limit-seconds 350        on a GPU that many processes share
    python jobs/studies/table4.py --out DIR --summary            table, verdicts and figure of what is there
    python jobs/studies/table4.py --out DIR --tiny               does it run here? seconds

Small: the demo's tokenizer and images (docs/paper.md says what was found). Settings differ in what alignment knows of the
labels that the probe is asked for. A cell is one trained tokenizer, one JSON file; seed by seed, every count in every setting.
It needs neither Ray nor MLflow; on two cores `mergevq sweep sweeps/keep_counts.py` asks the same of the platform.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

from cell_queue import Cell
from command import add_counts_and_seeds, exit_with, run_study, study_parser
from mergevq.errors import InputError
from table4_cells import SETTINGS, TAUGHT, Protocol, mean_colour, train_and_measure, train_teacher
from table4_figure import draw
from table4_summary import markdown, read_curves, read_floor, read_settings

COUNTS = (9, 16, 36, 64)
PROTOCOL_HELP = {
    "train_images": "images that tokenizers and probes learn from",
    "val_images": "images that are measured",
    "steps": "optimizer steps of a tokenizer",
    "batch": "images of a step",
    "teacher_steps": "optimizer steps of a teacher",
}
TINY = Protocol(train_images=60, val_images=36, steps=3, batch=12, teacher_steps=3)


def cells(settings: list[str], counts: list[int], seeds: int, protocol: Protocol) -> list[Cell]:
    """Teachers first, then a seed after the other, every count in every setting; the floor of reconstruction at the end."""
    taught = [setting for setting in settings if setting in TAUGHT]
    found = [
        Cell(
            name=f"teacher_{setting}",
            run=partial(train_teacher, setting=setting, protocol=protocol),
            settings={"setting": setting, **asdict(protocol)},
        )
        for setting in taught
    ]
    for seed in range(seeds):
        for count in counts:
            for setting in settings:
                own = {"setting": setting, "count": count, "seed": seed}
                found.append(
                    Cell(
                        name=f"{setting}_k{count:02d}_s{seed}",
                        run=partial(train_and_measure, protocol=protocol, **own),
                        needs=(f"teacher_{setting}",) if setting in taught else (),
                        settings={**own, **asdict(protocol)},
                    )
                )
    found.append(
        Cell(name="mean_colour", run=partial(mean_colour, protocol=protocol), settings=asdict(protocol))
    )
    return found


def main() -> int:
    """Run the cells, or summarise them; 1 where a cell failed."""
    options = _options()
    if options.summary:
        settings = [setting for folder in (options.out, *options.also) for setting in read_settings(folder)]
        for name, _, path in (text.partition("=") for text in options.curves):
            settings.append(read_curves(Path(path), name))
        if not settings:
            raise InputError(
                f"{options.out} holds no trained tokenizer: run the study first, without --summary"
            )
        text = markdown(settings, read_floor(options.out))
        (options.out / "table4.md").write_text(text)
        draw(settings, options.out / "table4_small.png")
        print(text)
        return 0
    given = {field.name: getattr(options, field.name) for field in fields(Protocol)}
    protocol = replace(
        TINY if options.tiny else Protocol(), **{k: v for k, v in given.items() if v is not None}
    )
    return run_study(cells(options.settings, options.counts, options.seeds, protocol), options)


def _options() -> argparse.Namespace:
    parser = study_parser(__doc__, summary="table4.md and table4_small.png")
    add_counts_and_seeds(parser, counts=COUNTS, seeds=3, seeds_help="seeds from 0 on")
    parser.add_argument(
        "--settings",
        nargs="+",
        choices=SETTINGS,
        default=["labels", "other_classes"],
        help="what alignment knows",
    )
    for name, text in PROTOCOL_HELP.items():
        option, default = f"--{name.replace('_', '-')}", getattr(Protocol, name)
        parser.add_argument(option, type=int, help=f"{text} (default {default})")
    parser.add_argument(
        "--also", nargs="+", type=Path, default=[], metavar="DIR", help="with --summary: folders beside --out"
    )
    parser.add_argument(
        "--curves",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="with --summary: curves.csv of sweeps over sweeps/keep_counts.py, each a setting of this name",
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
