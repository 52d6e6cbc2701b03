"""Undelivered records of a run and of all that belongs to it, and their delivery."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergevq_platform.tracking.acknowledged import is_delivered
from mergevq_platform.tracking.records import JOURNAL_NAME, read_identity
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.writer import SyncReport, sync

EVALUATIONS = "evaluations"


def directory_of(name: str, home: Path) -> Path | None:
    """The directory with the journal of a run, sweep or evaluation, by name or path; None where there is none here."""
    places = (Path(name), home / "ray" / name, home / EVALUATIONS / name)
    return next((place for place in places if (place / JOURNAL_NAME).is_file()), None)


def belonging(directory: Path) -> list[Path]:
    """The run in `directory`, the trials beside it if it is a sweep, and the evaluations of all of them."""
    uid = read_identity(directory / JOURNAL_NAME).uid
    beside = sorted(path.parent for path in directory.resolve().parent.glob(f"*/{JOURNAL_NAME}"))
    trials = [place for place in beside if read_identity(place / JOURNAL_NAME).parent == uid]
    return [
        place
        for run in (directory, *trials)
        for place in (run, *sorted(p.parent for p in (run / EVALUATIONS).glob(f"*/{JOURNAL_NAME}")))
    ]


def sync_all(directory: Path, store: Store) -> Iterator[SyncReport]:
    """Deliver the records that `store` lacks of the run in `directory` and of all that belongs to it; see `sync`."""
    for place in belonging(directory):
        yield sync(place, store)


def lacking(store: Store, directories: Sequence[Path], *, sync: str, reason: str | None = None) -> str | None:
    """One line where `store` has not everything that the journals of these runs hold, None where it has.

    `sync` is what `mergevq sync` takes to deliver them.
    """
    names = [
        read_identity(place / JOURNAL_NAME).name
        for place in directories
        if (place / JOURNAL_NAME).is_file() and not is_delivered(place / JOURNAL_NAME, store)
    ]
    if not names:
        return None
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    why = f" ({reason})" if reason else ""
    return (
        f"not in MLflow yet: {store.public_uri} lacks records of {', '.join(names[:3])}{more}{why}; "
        f"nothing is lost, deliver them with: mergevq sync {shlex.quote(sync)}"
    )
