"""The recorder of a training loop, an evaluation or an actor around them.

Journal and writer in one process. Everything it is made from is plain and picklable, so that an actor can
build it where it runs; workers of a run report to that one actor and never talk to MLflow.
"""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mergevq_platform.tracking.curve import CurveRows, append_curve
from mergevq_platform.tracking.journal import Journal
from mergevq_platform.tracking.records import JOURNAL_NAME, WENT_ON, YIELDED_TAG, RunIdentity, Status
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.writer import SyncReport, Writer


class Recorder(Protocol):
    """The recorder of a run. A loop knows this protocol and nothing of MLflow. No call waits for a server."""

    def params(self, values: Mapping[str, Any]) -> None:
        """The flattened recipe."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags that may change: commit, variant, fingerprints."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Values at an optimizer step; a step recorded twice keeps its first value."""

    def artifact(self, file: Path, directory: str = "") -> None:
        """A file of the run."""


class LocalRecorder:
    """Record into `run_dir/journal.jsonl` and, given a store, deliver to it in the background.

    `identity` starts a new run; without it an existing run goes on (its own identity is in the journal).
    """

    def __init__(
        self,
        run_dir: Path,
        store: Store | None,
        identity: RunIdentity | None = None,
        *,
        interval_seconds: float = 2.0,
    ) -> None:
        self._begin(Journal(Path(run_dir) / JOURNAL_NAME, identity), store, interval_seconds)

    @classmethod
    def around(cls, journal: Journal, store: Store | None, *, interval_seconds: float = 2.0) -> LocalRecorder:
        """A recorder that takes over an open journal, such as `open_for_curve`'s."""
        recorder = cls.__new__(cls)
        recorder._begin(journal, store, interval_seconds)
        return recorder

    def _begin(self, journal: Journal, store: Store | None, interval_seconds: float) -> None:
        self.journal = journal
        self._store = store
        self.report: SyncReport | None = None  # of `close`
        self._writer: Writer | None = None
        if store is not None:
            self._writer = Writer(journal.path, store, interval_seconds=interval_seconds).start()

    @property
    def identity(self) -> RunIdentity:
        """The identity of this run."""
        return self.journal.identity

    @property
    def delivery_error(self) -> str | None:
        """The reason why the store lacks the latest records, if it does."""
        return self._writer.error if self._writer else None

    @property
    def store(self) -> Store | None:
        """The store of the records."""
        return self._store

    def params(self, values: Mapping[str, Any]) -> None:
        """Record flat parameters; see `Journal.append_params`."""
        self.journal.append_params(values)

    def tags(self, values: Mapping[str, str]) -> None:
        """Record tags; the last value stands."""
        self.journal.append_tags(values)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record values at a step; repeated steps are dropped."""
        self.journal.append_metrics(step, values)

    def curve(self, rows: CurveRows, details: CurveRows | None = None) -> None:
        """Record a curve, what a paper prints and the details of it: kept tokens -> key -> value."""
        append_curve(self.journal, rows, details)

    def artifact(self, file: Path, directory: str = "") -> None:
        """Record a file of the run; see `Journal.append_artifact`."""
        self.journal.append_artifact(file, directory)

    def text(self, content: str, name: str) -> None:
        """Record `content` as the artifact `name` (a relative path such as `curve/table.md`)."""
        file = self.journal.run_dir / "artifacts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        parent = Path(name).parent.as_posix()
        self.journal.append_artifact(file, "" if parent == "." else parent)

    def dataset(self, *, name: str, digest: str, source: str, context: str = "training") -> None:
        """Record the data that the run reads."""
        self.journal.append_dataset(name=name, digest=digest, source=source, context=context)

    def running(self) -> None:
        """Record that the run is under way, again if it had ended or yielded."""
        self.journal.append_status("RUNNING")
        before = self.journal.tag(YIELDED_TAG)
        if before and not before.endswith(WENT_ON):
            self.tags({YIELDED_TAG: before + WENT_ON})

    def yielded(self, step: int, job: str) -> None:
        """Record that the run has yielded to an urgent job after a step; it stays RUNNING until `running` says that it is."""
        self.tags({YIELDED_TAG: f"after step {step}, to {job}"})

    def flush(self, timeout_seconds: float = 30.0) -> bool:
        """Deliver now; True once the store has everything recorded so far."""
        return self._writer.flush(timeout_seconds) if self._writer else False

    def close(self, status: Status | None = None, timeout_seconds: float = 30.0) -> SyncReport | None:
        """Record the end of the run (None: leave that as it is), deliver the rest, and let go.

        Returns what the delivery came to; None without a store. Never raises for a server's sake.
        """
        try:
            if status is not None:
                self.journal.append_status(status)
        finally:
            self.report = self._writer.close(timeout_seconds) if self._writer else None
            self.journal.close()
        return self.report


@dataclass(frozen=True, kw_only=True)
class RunStart:
    """What a run records of itself when it begins or goes on: plain values, for an actor that does without the model library."""

    directory: Path
    store: Store
    identity: RunIdentity
    params: dict[str, Any]
    tags: dict[str, str]
    dataset: dict[str, str] | None
    recipe: Path

    def open(self) -> LocalRecorder:
        """Open (or begin) the journal, write this into it, start the writer."""
        begun = (self.directory / JOURNAL_NAME).is_file()
        recorder = LocalRecorder(self.directory, self.store, None if begun else self.identity)
        recorder.running()
        recorder.params(self.params)
        recorder.tags(self.tags)
        if self.dataset is not None:
            recorder.dataset(**self.dataset)
        recorder.artifact(self.recipe)
        return recorder


@contextlib.contextmanager
def until_recorded(recorder: LocalRecorder) -> Iterator[None]:
    """Close `recorder` at the end. A run that is an evaluation alone has then ended; that of a training stays as it is."""
    alone = recorder.identity.kind == "evaluation"
    try:
        yield
    except BaseException:
        recorder.close("FAILED" if alone else None)
        raise
    recorder.close("FINISHED" if alone else None)


def current_user() -> str | None:
    """The account that runs this, for MLflow's column; None where it has no name (bare containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None
