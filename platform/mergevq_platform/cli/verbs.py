"""The help of a verb: a line in the list of verbs, a sentence or two, examples that can be typed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


class VerbHelp(argparse.HelpFormatter):
    """Help that wraps sentences and leaves indented lines, which are examples, as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        filled = super()._fill_text
        return "\n".join(
            line if line.startswith(" ") else filled(line, width, indent) for line in text.splitlines()
        )


def add_verb(
    verbs: Any, name: str, *, help: str, description: str, examples: Sequence[str], usage: str | None = None
) -> argparse.ArgumentParser:
    """Add a verb: `help` stands in the list of verbs, `description` and `examples` in the verb's own help."""
    shown = [f"  {example}" for example in examples]
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=help,
        description=description,
        epilog="\n".join(["examples:" if len(shown) > 1 else "example:", *shown]),
        usage=usage,
        formatter_class=VerbHelp,
    )
    return parser


def add_group(verbs: Any, name: str, *, help: str, description: str, examples: Sequence[str]) -> Any:
    """Add a verb that only holds others; returns where those are added."""
    group = add_verb(verbs, name, help=help, description=description, examples=examples)
    return group.add_subparsers(required=True, metavar="WHAT")


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add the option of a verb that finds a run by its name."""
    parser.add_argument(
        "--storage", help="where the run's checkpoints lie (default MERGEVQ_STORAGE, else runs/ray)"
    )
