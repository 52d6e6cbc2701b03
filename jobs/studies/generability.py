"""Which metric of a tokenizer tells what its codes are worth to a generator? Rank correlations with generators really trained.

    python jobs/studies/generability.py --out DIR                train and measure; again: what is missing
    python jobs/studies/generability.py --out DIR --processes 8 --limit-seconds 240      on a GPU that many processes share
    python jobs/studies/generability.py --out DIR --summary      table, correlations and figure of what is there
    python jobs/studies/generability.py --out DIR --tiny         does it run here? a minute

Five tokenizers of the demo's kind and three kept counts of each: Fréchet distance of reconstructions, with true and recovered
source; the same of perturbed codes (pFID); AR probe: bits and distance of its samples. The generator is of another kind than
the probe: class-conditional, random order, larger, trained for more steps. A cell is one JSON file; what the evidence needs most
comes first. It needs neither Ray nor MLflow (docs/generability.md says what was found).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from cell_queue import Cell
from command import add_counts_and_seeds, exit_with, run_study, study_parser
from generability_cells import VARIANTS, StudyProtocol, generate, measure, probe, train_variant
from generability_summary import draw, markdown, read_rows
from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq.metrics.ar_probe import AR_PROBES

COUNTS = (36, 16, 64)  # the most informative first: a study that is cut short has whole counts
SEEDS = 2  # of the generator; what differs between them is noise that no metric can explain
TINY = StudyProtocol(
    train_images=64,
    images=24,
    tokenizer_steps=2,
    tokenizer_batch=16,
    generator_steps=2,
    generator_batch=16,
    depth=1,
    width=32,
    heads=2,
)


def cells(names: Sequence[str], counts: Sequence[int], seeds: int, *, tiny: bool) -> Iterator[Cell]:
    """Tokenizers first; then a count after the other, with one generator; then the generators' other seeds."""
    protocol = TINY if tiny else StudyProtocol()
    probing = AR_PROBES["ar_probe_v1"]
    if tiny:
        probing = replace(probing, steps=2, batch=16, samples=24, train_images=64)

    def cell(kind: str, run: Callable[..., Mapping[str, Any]], name: str, **own: Any) -> Cell:
        shown = {key: to_tree(value) if key == "settings" else value for key, value in own.items()}
        return Cell(
            name="_".join([kind, name, *(f"{key[0]}{own[key]}" for key in ("keep", "seed") if key in own)]),
            run=partial(run, name=name, protocol=protocol, **own),
            needs=() if kind == "tokenizer" else (f"tokenizer_{name}",),
            settings={**asdict(protocol), "variant": asdict(VARIANTS[name]), **shown},
        )

    for name in names:
        yield cell("tokenizer", train_variant, name)
    for keep in counts:
        for name in names:
            yield cell("generator", generate, name, keep=keep, seed=0)
            yield cell("probe", probe, name, keep=keep, settings=probing)
            yield cell("measure", measure, name, keep=keep)
    for seed in range(1, seeds):
        for keep in counts:
            for name in names:
                yield cell("generator", generate, name, keep=keep, seed=seed)


def main() -> int:
    """Run the cells, or summarise them; 1 where a cell failed."""
    options = _options()
    if options.summary:
        rows = read_rows(options.out)
        if not rows:
            raise InputError(
                f"{options.out} holds no generator with its metrics: run the study first, without --summary"
            )
        text = markdown(rows)
        (options.out / "generability.md").write_text(text)
        draw(rows, options.out / "generability.png")
        print(text)
        return 0
    chosen = cells(options.tokenizers, options.counts, options.seeds, tiny=options.tiny)
    return run_study(list(chosen), options)


def _options() -> argparse.Namespace:
    parser = study_parser(__doc__, summary="generability.md and generability.png")
    add_counts_and_seeds(parser, counts=COUNTS, seeds=SEEDS, seeds_help="generators of each codes")
    parser.add_argument(
        "--tokenizers",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        help="of those of the study (default: all)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
