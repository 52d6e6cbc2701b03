"""Sizes of images and of grids: one number for a square, (height, width) or (rows, columns) for any rectangle.

A square is one number wherever a size is held or stored; `height_width` gives both sides of any size.
"""

from __future__ import annotations

import math
import operator
import re
from typing import Annotated, Any

from pydantic import BeforeValidator

from mergevq.errors import InputError
from mergevq.number_types import Count


def parse_size(value: Any) -> int | tuple[int, int]:
    """The size that was written as 64, "64", "48x64" (height x width) or [48, 64]; a square becomes one number.

    Raises `InputError` for anything else, and for a side below 1.
    """
    sides = _sides(value)
    if sides is None or len(sides) not in (1, 2) or min(sides) < 1:
        raise InputError(
            f"{value!r} is no size: give a whole number of at least 1 for a square, or height and width, 48x64 or [48, 64]"
        )
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


ImageSize = Annotated[Count | tuple[Count, Count], BeforeValidator(parse_size)]


def height_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Both sides of a size: (height, width) in pixels, or (rows, columns) in cells."""
    return (size, size) if isinstance(size, int) else size


def size_text(size: int | tuple[int, int]) -> str:
    """A size in messages and protocols: "64" for a square, "48 x 64" (height x width) for any other."""
    return str(size) if isinstance(size, int) else f"{size[0]} x {size[1]}"


def grid_of(size: int | tuple[int, int], cell: int) -> tuple[int, int]:
    """Rows and columns of an image cut into cells of `cell` pixels. Raises `InputError` where it does not divide into them."""
    height, width = height_width(size)
    if height < cell or width < cell or height % cell or width % cell:
        raise InputError(f"images of {height} x {width} do not divide into cells of {cell} pixels")
    return height // cell, width // cell


def square_grid(cells: int) -> tuple[int, int] | None:
    """Rows and columns of a square of `cells`; None where it is no square number."""
    side = math.isqrt(cells)
    return (side, side) if cells and side * side == cells else None


def _sides(value: Any) -> list[int] | None:
    if isinstance(value, str):
        found = re.fullmatch(r"\s*(\d+)\s*(?:[x×]\s*(\d+)\s*)?", value)
        return [int(side) for side in found.groups() if side is not None] if found else None
    if not isinstance(value, list | tuple):
        value = [value]
    sides = [_whole(side) for side in value]
    return None if None in sides else [side for side in sides if side is not None]


def _whole(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
