"""The end of a run of a sweep whose own process could not record it: of a trial that was stopped or failed, of a trunk."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from mergevq.errors import InputError
from mergevq_platform.tracking.journal import Journal, JournalHeld
from mergevq_platform.tracking.records import JOURNAL_NAME, Status, read_journal
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.writer import sync

CLOSING_SECONDS = 60.0  # that a trial's process has to deliver its last records


def closed(directory: Path, store: Store, status: Status, tags: dict[str, str]) -> None:
    """Write the end of a run into its journal and deliver it; nothing where it has no journal."""
    path = directory / JOURNAL_NAME
    if not path.is_file() or (journal := _released(path)) is None:
        return
    journal.append_tags(tags)
    journal.append_status(status)
    journal.close()
    with contextlib.suppress(InputError):  # said at the end of the sweep
        sync(directory, store)


def recorded_status(directory: Path) -> Status | None:
    """The last status in the journal of a run; None where it has none."""
    path = directory / JOURNAL_NAME
    if not path.is_file():
        return None
    found: list[Status] = [record.data["status"] for record in read_journal(path) if record.kind == "status"]
    return found[-1] if found else None


def _released(path: Path) -> Journal | None:
    """The journal of a run whose process may still deliver its last records, once it has let go; None, and said, if it does not."""
    until = time.monotonic() + CLOSING_SECONDS
    while True:
        try:
            return Journal(path)
        except JournalHeld as held:
            if time.monotonic() > until:
                print(f"the end of {path.parent.name} is not recorded: {held}", file=sys.stderr)
                return None
            time.sleep(0.1)
