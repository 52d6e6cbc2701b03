"""Reports as JSON files: rows of metrics with their protocol."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mergevq.errors import InputError
from mergevq.files import write_whole
from mergevq_platform.storage.json_text import json_text, without_nulls

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnyDataclass = TypeVar("AnyDataclass", bound="DataclassInstance")


def save_report(report: DataclassInstance, path: Path) -> None:
    """Write the fields of a report as JSON, in one step."""
    write_whole(path, json_text(asdict(report)))


def load_report(kind: type[AnyDataclass], path: Path, *, what: str) -> AnyDataclass:
    """A report of a `kind` from the file that `save_report` wrote; metrics that were no finite number are left out.

    Raises `InputError` where the file is not `what`, the words of a message.
    """
    try:
        tree = json.loads(path.read_text())
        tree["rows"] = [without_nulls(row) for row in tree["rows"]]
        if "references" in tree:
            tree["references"] = {name: without_nulls(row) for name, row in tree["references"].items()}
        return kind(**tree)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not {what} ({error})") from None
