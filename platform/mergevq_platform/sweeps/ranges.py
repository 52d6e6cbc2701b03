"""Ranges of a space next to each other: where a value lies in one, a wider and a narrower one, and how a command line writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from mergevq_platform.sweeps.space import Choice, Domain, Integer, RealRange, Value, labels

Range = RealRange | Integer

BORDER = 0.1  # of a range, at either end


def position(domain: Range, value: float) -> float:
    """Where a value lies: 0 at the lower end, 1 at the upper, in the logarithm of a range that is drawn so."""
    low, high, value = (_even(domain, end) for end in (domain.low, domain.high, value))
    return (value - low) / (high - low)


def at_border(domain: Range, value: float) -> Literal["lower", "upper"] | None:
    """The border that a value lies at: in the outer tenth of the range, or at the end itself of few whole numbers."""
    at = position(domain, value)
    return "lower" if at < BORDER else "upper" if at > 1 - BORDER else None


def widened(domain: Range, border: Literal["lower", "upper"]) -> Range | None:
    """A range as wide, with the border in its middle; None where nothing lies beyond: below 0 for a range of what is not negative."""
    low, high = _even(domain, domain.low), _even(domain, domain.high)
    middle = low if border == "lower" else high
    return spanned(
        domain,
        _back(domain, middle - (high - low) / 2),
        _back(domain, middle + (high - low) / 2),
        beyond=True,
    )


def spanned(domain: Range, low: float, high: float, *, beyond: bool = False) -> Range | None:
    """The part of a range from `low` to `high`, in numbers that a person would write; None where nothing is left of it."""
    if isinstance(domain, Integer):
        whole = Integer(math.floor(low), math.ceil(high))
        if domain.low >= 0:
            whole = Integer(max(0, whole.low), whole.high)
        moved = whole.low < domain.low or whole.high > domain.high
        return whole if whole.low < whole.high and (moved or not beyond) else None
    if domain.low >= 0 and low < 0:
        low = 0.0
    real = RealRange(float(f"{low:.2g}"), float(f"{high:.2g}"), domain.log)
    if beyond and real.low >= domain.low and real.high <= domain.high:
        return None
    return real if real.low < real.high else None


def divided(domain: Range, count: int) -> list[float]:
    """The ends (count + 1) of even parts of a range."""
    low, high = _even(domain, domain.low), _even(domain, domain.high)
    return [_back(domain, low + (high - low) * at / count) for at in range(count + 1)]


def over(key: str, domain: Domain, values: Range | Sequence[Value]) -> str | None:
    """What `--over` takes for a range, or for some options of a choice; None for options that hold ranges themselves."""
    match values:
        case RealRange(low, high, log):
            return f"{key}={float(low)!r}..{float(high)!r}{':log' if log else ''}"
        case Integer(low, high):
            return f"{key}={low}..{high}"
    if not isinstance(domain, Choice):
        return f"{key}={','.join(map(str, values))}"
    options = dict(zip(labels(domain), domain.options, strict=True))
    chosen = [options[str(value)] for value in values]
    if any(_holds_range(option) for option in chosen):
        return None
    text = ",".join(json.dumps(option) for option in chosen)
    return None if ".." in text else f"{key}={text}"


def _holds_range(option: object) -> bool:
    if isinstance(option, Mapping):
        return any(_holds_range(part) for part in option.values())
    if isinstance(option, list | tuple):
        return any(map(_holds_range, option))
    return isinstance(option, Choice | RealRange | Integer)


def _even(domain: Range, value: float) -> float:
    return math.log(value) if isinstance(domain, RealRange) and domain.log else float(value)


def _back(domain: Range, value: float) -> float:
    return math.exp(value) if isinstance(domain, RealRange) and domain.log else value
