"""Files that appear whole or not at all, and JSON without infinity."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary name beside `target` that becomes `target` at a clean end, and vanishes otherwise."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: a reader finds the old file or the new one, whole."""
    with whole_file(path) as temporary:
        temporary.write_text(text)


def json_text(value: Any) -> str:
    """Plain values as JSON, which has no infinity and no NaN: such numbers become null."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(part) for key, part in value.items()}
        case list() | tuple():
            return [_finite(part) for part in value]
    return value


def without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics as `json_text` wrote it, without those that were no numbers."""
    return {key: value for key, value in row.items() if value is not None}
