"""Calibration: the constant at which an allocator has a wanted mean count on images like those to come."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic
from torch import Tensor

from mergevq.allocation.config import AllocatorConfig
from mergevq.allocation.protocol import Allocator, Menu
from mergevq.errors import InputError
from mergevq.files import write_whole

FORMAT = "mergevq calibration 1"
BISECTIONS = 200  # at most; they end before where no number lies between the ends


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The constant of an allocator for a budget, and the mean count that it has with it on the images of calibration."""

    budget: float  # the wanted mean of the kept count
    constant: float
    reached: float


def calibrate(scores: Tensor, allocator: Allocator, budget: float) -> Calibrated:
    """The constant with which images of these scores (B,) or (B, M) have the mean count nearest to `budget`.

    Of two equally near means the lower is taken. Raises `InputError` for a budget outside the menu, for one that the allocator
    cannot reach on these images, and for no images.
    """
    require_within(budget, allocator.menu)
    if not len(scores):
        raise InputError("an allocator is calibrated on images, and there are none: give a split with images")

    def mean(constant: float) -> float:
        return float(allocator.counts(scores, constant).double().mean())

    fewest, most = allocator.bracket(scores, budget)
    low, high = mean(fewest), mean(most)
    if not low <= budget <= high:
        raise InputError(
            f"a mean of {budget:g} kept tokens cannot be reached: on these {len(scores):,} images this allocator keeps "
            f"{low:.4g} to {high:.4g}, beyond which more tokens would only harm: give a budget between them"
        )
    for _ in range(BISECTIONS):
        middle = (fewest + most) / 2
        if middle in (fewest, most):
            break
        if (found := mean(middle)) <= budget:
            fewest, low = middle, found
        else:
            most, high = middle, found
    constant, reached = (fewest, low) if budget - low <= high - budget else (most, high)
    return Calibrated(budget=budget, constant=constant, reached=reached)


def require_within(budget: float, menu: Menu) -> None:
    """Raise `InputError` for a mean count that no choice out of the menu can have."""
    if not (math.isfinite(budget) and menu[0] <= budget <= menu[-1]):
        raise InputError(
            f"a mean of {budget:g} kept tokens lies outside the menu, {menu[0]} to {menu[-1]}: give one within, or another menu"
        )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The constants of an allocator for some budgets, and all that they hold for: stored as JSON."""

    allocator: AllocatorConfig
    allocator_sha256: str | None  # of its weights; none: it has none
    menu: Menu
    tokenizer_sha256: str  # of its weights file
    data_fingerprint: str
    split: str
    images: int
    budgets: tuple[Calibrated, ...]

    def of(self, budget: float) -> Calibrated:
        """The constant for a budget. Raises `InputError` for one that was not calibrated."""
        for known in self.budgets:
            if known.budget == budget:
                return known
        listed = ", ".join(f"{known.budget:g}" for known in self.budgets) or "none"
        raise InputError(
            f"the allocator {self.allocator.kind} is not calibrated for a mean of {budget:g} kept tokens, only for {listed}: "
            "calibrate it for that budget, or give one of these"
        )

    def require_tokenizer(self, sha256: str) -> None:
        """Raise `InputError` unless the tokenizer's weights have this hash."""
        if sha256 != self.tokenizer_sha256:
            raise InputError(
                f"the allocator {self.allocator.kind} was calibrated with a tokenizer of weights {self.tokenizer_sha256[:12]}…, this "
                f"one has {sha256[:12]}…: calibrate it for this tokenizer"
            )

    def write(self, path: Path) -> None:
        """Write it as JSON; the file appears whole or not at all."""
        tree = {"format": FORMAT, **_ADAPTER.dump_python(self, mode="json")}
        write_whole(path, json.dumps(tree, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """The calibration in a file. Raises `InputError` where there is none, or something else."""
        try:
            tree = json.loads(path.read_text())
        except FileNotFoundError:
            raise InputError(f"{path} is not there: calibrate the allocator first") from None
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}): calibrate the allocator again") from None
        if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
            raise InputError(
                f"{path} holds something other than a '{FORMAT}': give the file of a calibration"
            )
        try:
            return _ADAPTER.validate_python(tree)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{path}: {where}: {first['msg']}: calibrate the allocator again") from None


_ADAPTER = pydantic.TypeAdapter(Calibration)


def calibrations(
    scores: Tensor,
    allocator: Allocator,
    budgets: Sequence[float],
    *,
    refused: Callable[[float, InputError], None] | None = None,
) -> tuple[Calibrated, ...]:
    """The constant for each budget, ascending and each once.

    A budget that cannot be is left out and told to `refused`; without it, the first one raises `InputError` as `calibrate` does.
    """
    found = []
    for budget in sorted(set(budgets)):
        try:
            found.append(calibrate(scores, allocator, budget))
        except InputError as error:
            if refused is None:
                raise
            refused(budget, error)
    return tuple(found)
