"""From the values of a label column to class numbers: numbers as they are, text and booleans by name, -1 for none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mergevq.errors import InputError

MOST_CLASSES = 1_000_000
BOOLEANS = ("false", "true")


class NoClass(InputError):
    """The values of a column are no classes."""


Kind = Literal["number", "boolean", "text", "bytes"]


def kind_of(type_: pa.DataType) -> Kind | None:
    """The kind of classes that the values of a column are; none for a type that is no class (lists, dates, structs)."""
    if pa.types.is_dictionary(type_):
        return kind_of(type_.value_type)
    if pa.types.is_boolean(type_):
        return "boolean"
    if (
        pa.types.is_integer(type_)
        or pa.types.is_floating(type_)
        or pa.types.is_decimal(type_)
        or pa.types.is_null(type_)
    ):
        return "number"
    if pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_):
        return "text"
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return "bytes"  # text that a writer did not mark as such
    return None


def numbers(values: pa.ChunkedArray, where: str) -> np.ndarray:
    """Class numbers int64 (N,), -1 for nulls, NaN and negative ones.

    Raises `NoClass`, beginning with `where`, for a value that is no whole number or beyond `MOST_CLASSES`.
    """
    values = _plain(values)
    if pa.types.is_null(values.type):
        return np.full(len(values), -1, np.int64)
    if pa.types.is_floating(values.type) or pa.types.is_decimal(values.type):
        found = values.cast(pa.float64()).to_numpy()  # a null is NaN
        known = found[~np.isnan(found)]
        wrong = known[(known != np.floor(known)) | np.isinf(known)]
        if len(wrong):
            raise NoClass(
                f"{where} is {values.type} and holds {wrong[0]:g}, which is no class number: choose another with label_column, or 'none'"
            )
        check_highest(int(known.max(initial=-1)), where)
        return np.where(np.isnan(found) | (found < 0), -1, found).astype(np.int64)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    highest = pc.max(values).as_py()
    check_highest(-1 if highest is None else highest, where)
    return np.maximum(values.cast(pa.int64()).fill_null(-1).to_numpy(), -1)


def check_highest(number: int, where: str) -> None:
    """Raise `NoClass`, beginning with `where`, for a number that can be no class's."""
    if number >= MOST_CLASSES:
        raise NoClass(
            f"{where} holds {number}, which is no class number (below {MOST_CLASSES:,}): choose another with label_column, or 'none'"
        )


def texts(values: pa.ChunkedArray, where: str) -> list[str | None]:
    """The values of a column of text or of booleans, in NFC and without blanks around; none for nulls and blank ones.

    Raises `NoClass`, beginning with `where`, for bytes that are no UTF-8.
    """
    values = _plain(values)
    if pa.types.is_boolean(values.type):
        return [None if value is None else BOOLEANS[value] for value in values.to_pylist()]
    try:
        found = [value.decode() if isinstance(value, bytes) else value for value in values.to_pylist()]
    except UnicodeDecodeError as error:
        raise NoClass(
            f"{where} is {values.type} and holds {error.object[:16]!r}, which is no text: choose another with label_column, or 'none'"
        ) from None
    return [
        unicodedata.normalize("NFC", value.strip()) if value and value.strip() else None for value in found
    ]


def sorted_names(values: Iterable[str]) -> tuple[str, ...]:
    """The names of classes in order: by number where all are whole numbers, and then without negative ones."""
    found = set(values)
    if found and all(re.fullmatch(r"[+-]?\d+", value) for value in found):
        return tuple(
            sorted((value for value in found if int(value) >= 0), key=lambda value: (int(value), value))
        )
    return tuple(sorted(found))


def by_name(values: Sequence[str | None], names: Sequence[str], where: str) -> np.ndarray:
    """Class numbers int64 (N,) of the names that `texts` gives; -1 for none and for negative numbers as text."""
    index: dict[str | None, int] = {None: -1, **{name: number for number, name in enumerate(names)}}
    try:
        return np.array([index[value] if value in index else _none(value) for value in values], np.int64)
    except KeyError as error:
        raise InputError(
            f"{where} holds {error}, which no class is called: the file has changed, start again"
        ) from None


def _none(value: str | None) -> int:
    if value is not None and re.fullmatch(r"-\d+", value):
        return -1
    raise KeyError(value)


def first_value(values: pa.ChunkedArray) -> Any:
    """The first value of a column that is no null, shortened, for a message."""
    found = next((value for value in values.to_pylist() if value is not None), None)
    text = str(found)
    return text if len(text) <= 60 else text[:60] + " …"


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionary; kinds of text and of half floats that little can be done with become ordinary ones."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string_view(values.type):
        return values.cast(pa.string())
    return values.cast(pa.float32()) if pa.types.is_float16(values.type) else values
