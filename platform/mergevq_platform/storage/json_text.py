"""JSON without infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_text(value: Any) -> str:
    """Plain values as JSON, which has no infinity and no NaN: such numbers become null."""
    return json.dumps(_finite(value), indent=1, allow_nan=False)


def json_line(value: Any) -> str:
    """As `json_text`, in one line."""
    return json.dumps(_finite(value), allow_nan=False)


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
