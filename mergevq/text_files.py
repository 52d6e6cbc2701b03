"""Text files that people write: recipes, configurations, sweeps, labels."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

from mergevq.errors import InputError


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 that says so by its byte order mark; marks are no part of it.

    Raises `InputError`, naming file and line, for another encoding, and `OSError` for a file that cannot be read.
    """
    data = Path(path).read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return decoded(path, data, lambda raw: raw.decode("utf-16"))
    return decoded(path, data.removeprefix(codecs.BOM_UTF8), lambda raw: raw.decode("utf-8"))


def decoded(path: str | Path, data: bytes, decode: Callable[[bytes], str]) -> str:
    """`data` of the file at `path` by `decode`. Raises `InputError`, naming file and line, where that fails."""
    try:
        return decode(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} is not UTF-8 (line {line}): save it as UTF-8") from None
