"""Reports as JSON files: rows of metrics with their protocol."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Self

from mergevq.errors import InputError
from mergevq.files import write_whole
from mergevq_platform.storage.json_text import json_text, without_nulls


@dataclass(frozen=True)
class StoredReport:
    """A report whose fields are a JSON file; metrics that were no finite number are left out when it is read."""

    called: ClassVar[str]  # in messages

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_whole(path, json_text(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read JSON written by `save`; older files may hold infinite PSNR. Raises `InputError` if it is something else."""
        try:
            tree = json.loads(path.read_text())
            tree["rows"] = [without_nulls(row) for row in tree["rows"]]
            if "references" in tree:
                tree["references"] = {name: without_nulls(row) for name, row in tree["references"].items()}
            return cls(**tree)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is not {cls.called} ({error})") from None
