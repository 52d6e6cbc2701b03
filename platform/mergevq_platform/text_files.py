"""Text files that a user gives: UTF-8 with or without its mark, or UTF-16 with one."""

from __future__ import annotations

import codecs
from pathlib import Path

from mergevq.errors import InputError


def read_text(path: Path) -> str:
    """The text of a file. Raises `InputError` naming the line where it is not UTF-8."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, start = "utf-16", 0
    else:
        encoding, start = "utf-8", len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        return data[start:].decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, start + error.start) + 1
        name = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise InputError(f"{path} is not {name} (line {line}): save it as UTF-8") from None
