"""Options of an evaluation of any kind; each kind takes those that it knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.worker import Device

Suite = Literal["reconstruction", "representation", "distribution", "generability", "ar_probe"]
SUITES: tuple[Suite, ...] = ("reconstruction", "representation")  # those of every curve
BESIDE_RECONSTRUCTION: tuple[Suite, ...] = (
    "distribution",
    "generability",
)  # what these compare with is there


def completed(suites: Sequence[Suite]) -> tuple[Suite, ...]:
    """The suites with that of reconstructions, where one is among them whose numbers stand beside its own."""
    beside = any(suite in BESIDE_RECONSTRUCTION for suite in suites)
    return ("reconstruction", *suites) if beside and "reconstruction" not in suites else tuple(suites)


def _silent(text: str) -> None:
    del text


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The options of `evaluate`, with who does the work: this process for 0 `workers`, else so many Ray actors."""

    device: Device
    step: int | None = None
    workers: int = 0
    cache: Cache | None = None
    data: str | None = None  # none: the recipe's
    keeps: Sequence[int] | None = None  # none: the recipe's
    suites: Sequence[Suite] = SUITES
    seeds: int = 1
    budgets: Sequence[float] | None = (
        None  # mean kept counts: of allocators, none the curve; of a generator, none that of its codes
    )
    allocators: Sequence[str] | None = None  # none: all that need no run
    scales: Sequence[float] | None = None  # none: the recipe's
    images: int | None = None  # none: the recipe's
    steps: int | None = None
    seed: int = 0
    tokenizer: str | None = None  # where a generator's lies now; none: the recipe's
    say: Callable[[str], None] = _silent
