"""The writer: a thread that delivers a journal while the run goes on; and `sync`, for the records that it missed."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from mergevq.errors import InputError
from mergevq_platform.tracking.acknowledged import Position
from mergevq_platform.tracking.delivery import Delivery
from mergevq_platform.tracking.experiment_note import keep_note
from mergevq_platform.tracking.journal import Journal, JournalHeld
from mergevq_platform.tracking.proxies import through
from mergevq_platform.tracking.records import JOURNAL_NAME
from mergevq_platform.tracking.shared_view import keep_up
from mergevq_platform.tracking.store import Store, import_mlflow, reason_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """The result of a delivery: records sent, records left, and the run's ids (None where no server answered)."""

    store: str
    run_id: str | None
    experiment_id: str | None
    sent_metrics: int
    pending_bytes: int
    missing_artifacts: tuple[str, ...] = ()
    error: str | None = None
    view_error: str | None = None  # why MLflow's page of the experiment has no view of ours

    @property
    def complete(self) -> bool:
        """Whether the store has everything that the journal holds."""
        return self.pending_bytes == 0 and self.error is None

    def __str__(self) -> str:
        lost = f"; no longer on disk: {', '.join(self.missing_artifacts)}" if self.missing_artifacts else ""
        if self.complete:
            now = f"{self.sent_metrics} values sent now"
            view = f"; its page is the plain one: {self.view_error}" if self.view_error else ""
            return f"{self.store} has everything of run {self.run_id} ({now}){lost}{view}"
        reason = self.error or "delivery goes on"
        return f"{self.store} lacks {self.pending_bytes} bytes of the journal: {reason}{lost}"


class Writer:
    """Deliver the journal at `path` to `store` every `interval_seconds` from a background thread.

    The thread never raises and never holds the run up: a server that does not answer is tried again, more and
    more rarely up to `slowest_seconds`, and the journal keeps what it misses.
    """

    def __init__(
        self, path: Path, store: Store, *, interval_seconds: float = 2.0, slowest_seconds: float = 60.0
    ) -> None:
        self._path = Path(path)
        self._store = store
        self._interval = interval_seconds
        self._slowest = slowest_seconds
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._idle = threading.Event()
        self._delivery: Delivery | None = None
        self._error: str | None = None
        self._viewed = False
        self._view_error: str | None = None
        self._report: SyncReport | None = None
        self._thread = threading.Thread(target=self._run, name="mlflow-writer", daemon=True)

    def start(self) -> Writer:
        """Begin to deliver."""
        # Imported here and not in the thread: two threads importing at once can see half-made modules.
        import_mlflow()
        self._thread.start()
        return self

    @property
    def error(self) -> str | None:
        """The reason why the store lacks the latest records, if it does."""
        return self._error

    def flush(self, timeout_seconds: float = 30.0) -> bool:
        """Deliver now; True once the store has everything recorded before the call."""
        if not self._thread.is_alive():
            return False
        wanted = self._path.stat().st_size
        deadline = time.monotonic() + timeout_seconds
        while (left := deadline - time.monotonic()) > 0:
            self._idle.clear()
            self._wake.set()
            self._idle.wait(left)
            position = self._delivery.position if self._delivery else None
            if position is not None and position.offset >= wanted:
                return True
        return False

    def close(self, timeout_seconds: float = 30.0) -> SyncReport:
        """Deliver the rest, for `timeout_seconds` at most, and stop."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_seconds)
        if self._report is not None:
            return self._report
        return _report(
            self._path, self._store, self._delivery, self._error or "the server took too long to answer"
        )

    def _run(self) -> None:
        wait = self._interval
        while True:
            last = self._closing.is_set()
            self._wake.clear()
            try:
                if self._delivery is None:
                    self._delivery = Delivery(self._path, self._store)
                while self._delivery.advance():
                    pass
                if self._error is not None:
                    log.warning("tracking store %s answers again", self._store.public_uri)
                self._error = None
                wait = self._interval
                self._idle.set()
                if last:
                    self._report = _report(self._path, self._store, self._delivery, None)
                self._update_views(self._delivery)
            except Exception as error:
                wait = min(wait * 2, self._slowest)
                message = reason_of(error) + through(self._store.uri)
                if self._error is None:
                    log.warning(
                        "tracking store %s: %s (the run goes on; the journal keeps everything)",
                        self._store.public_uri,
                        message,
                    )
                self._error = message
            if last:
                break
            self._wake.wait(wait)
        report = _report(self._path, self._store, self._delivery, self._error)
        self._report = replace(report, view_error=self._view_error)
        if self._delivery is not None:
            self._delivery.close()

    def _update_views(self, delivery: Delivery) -> None:
        if (self._viewed and not delivery.changed) or delivery.position is None:
            return
        changed, delivery.changed, self._viewed = delivery.changed, False, True
        reason = _keep_pages(self._store, delivery.position, changed=changed)
        if reason not in (None, self._view_error):
            log.warning(
                "tracking store %s: its page of the experiment stays the plain one: %s",
                self._store.public_uri,
                reason,
            )
        self._view_error = reason


def sync(run_dir: Path, store: Store) -> SyncReport:
    """Deliver the records that `store` lacks of the run in `run_dir`; repeating it changes nothing.

    A run that no process is writing any more, and that never said how it ended, is recorded as KILLED; a curve of before
    gets the axis that charts draw it over. Raises
    `InputError` where there is no journal or the store does not answer.
    """
    path = Path(run_dir) / JOURNAL_NAME
    if not path.is_file():
        raise InputError(f"{run_dir}: holds no {JOURNAL_NAME}; name the directory of a run")
    _complete(path)
    delivery = Delivery(path, store)
    try:
        while delivery.advance():
            pass
        assert delivery.position is not None
        view_error = _keep_pages(store, delivery.position, changed=delivery.changed)
        return replace(_report(path, store, delivery, None), view_error=view_error)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{store.failure(error)}; nothing is lost, sync again later") from error
    finally:
        delivery.close()


def _keep_pages(store: Store, position: Position, *, changed: bool) -> str | None:
    """After a delivery: bring views and note of the experiment up to date; why it has no view, if it has none."""
    reason = keep_up(store, position, changed=changed)
    keep_note(store, position, changed=changed, viewed=reason is None)
    return reason


def _complete(path: Path) -> None:
    try:
        journal = Journal(path)
    except JournalHeld:
        return  # alive: its own writer, or the next sync, delivers its end
    with journal:
        journal.append_axes()
        if journal.status in (None, "RUNNING"):
            journal.append_status("KILLED")


def _report(path: Path, store: Store, delivery: Delivery | None, error: str | None) -> SyncReport:
    position = delivery.position if delivery else None
    return SyncReport(
        store=store.public_uri,
        run_id=position.run_id if position else None,
        experiment_id=position.experiment_id if position else None,
        sent_metrics=delivery.sender.sent_metrics if delivery else 0,
        pending_bytes=delivery.pending_bytes if delivery else path.stat().st_size,
        missing_artifacts=tuple(delivery.sender.missing_artifacts) if delivery else (),
        error=error,
    )
