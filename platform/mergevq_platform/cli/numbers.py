"""Numbers and sizes on the command line."""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least 1")
    return number


def mean_count(text: str) -> float:
    """A mean of counts, of at least 1; it need not be whole."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 1):
        raise argparse.ArgumentTypeError(f"{text}: give a number of at least 1")
    return number


def size(text: str) -> int | tuple[int, int]:
    """An image size: 64 for a square, 48x64 for any other, height first."""
    from mergevq.errors import InputError
    from mergevq.image_size import parse_size

    try:
        return parse_size(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
