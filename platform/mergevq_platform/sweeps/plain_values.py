"""Values of sweep files as recipes and JSON hold them: NumPy's numbers, paths and members of enumerations made plain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from pathlib import PurePath

import numpy as np

from mergevq.errors import InputError
from mergevq_platform.sweeps.space import Choice, Integer, RealRange


def plain(value: object, key: str) -> object:
    """A space, or any value in it, of Python's own numbers, texts, lists and mappings.

    NumPy's numbers and arrays become Python's, a path its text, a member of an enumeration its value. Raises `InputError`, naming
    `key`, for what is none of these.
    """
    match value:
        case Choice(options):
            return Choice(tuple(plain(option, key) for option in options))
        case RealRange(low, high, log):
            return RealRange(_number(low, key), _number(high, key), log=bool(log))
        case Integer(low, high):
            return Integer(_whole(low, key), _whole(high, key))
        case Mapping():
            return {
                str(name): plain(part, f"{key}.{name}" if key else str(name)) for name, part in value.items()
            }
        case np.ndarray():
            return plain(value.tolist(), key)
        case np.generic():
            inner = value.item()
            return plain(float(inner) if isinstance(inner, np.longdouble) else inner, key)
        case Enum():
            return plain(value.value, key)
        case PurePath():
            return str(value)
        case list() | tuple():
            return [plain(part, key) for part in value]
        case bool() | int() | float() | str() | None:
            return value
    raise InputError(
        f"the choice for '{key}' holds {value!r} of type {type(value).__name__}: a recipe holds numbers, texts, lists and mappings"
    )


def _number(value: object, key: str) -> float:
    found = plain(value, key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InputError(f"the range of '{key}' has {value!r} at one end: give a number")
    return found


def _whole(value: object, key: str) -> int:
    found = _number(value, key)
    if not math.isfinite(found) or found != int(found):
        raise InputError(
            f"the range of '{key}' has {value!r} at one end: give a whole number, or a uniform range"
        )
    return int(found)
