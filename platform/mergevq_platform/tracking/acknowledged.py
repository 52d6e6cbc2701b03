"""Acknowledged positions of a journal: `journal.sent.json` beside it, an entry for each store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergevq.files import write_whole
from mergevq_platform.tracking.store import Store


@dataclass(frozen=True)
class Position:
    """The position that one store has acknowledged: the run's ids there, and the offset of the next record."""

    run_id: str
    experiment_id: str
    offset: int = 0
    seq: int = 0


def read_position(journal: Path, store: Store) -> Position | None:
    """The position of `store`, by the file beside the journal; None where nothing is noted."""
    entry = _stores(journal).get(store.public_uri)
    return Position(**entry) if entry else None


def write_position(journal: Path, store: Store, position: Position) -> None:
    """Write the position of `store` beside the journal."""
    stores = _stores(journal) | {store.public_uri: vars(position)}
    write_whole(sent_file(journal), json.dumps(stores, indent=1))


def is_delivered(journal: Path, store: Store) -> bool:
    """Whether `store` has acknowledged all of the journal, by the file beside it."""
    position = read_position(journal, store)
    return position is not None and position.offset >= journal.stat().st_size


def sent_file(journal: Path) -> Path:
    """The file beside the journal that holds the positions."""
    return journal.with_suffix(".sent.json")


def _stores(journal: Path) -> dict[str, Any]:
    try:
        return json.loads(sent_file(journal).read_text())
    except (FileNotFoundError, ValueError):
        return {}  # then the run is found by its uid, and everything is compared
