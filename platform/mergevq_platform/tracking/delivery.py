"""Delivery of a journal to MLflow: in order, in batches, each (key, step) exactly once.

Beside the journal lies `journal.sent.json`: per store, the run's id there and how far the store has
acknowledged. It is written after the server's answer, so that a crash in between leaves a batch in doubt.
Therefore a metric whose step is not beyond the server's latest is compared with its history before it goes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mergevq.errors import InputError
from mergevq_platform.tracking.acknowledged import Position, read_position, sent_file, write_position
from mergevq_platform.tracking.locks import ExclusiveLock
from mergevq_platform.tracking.records import (
    ALLOCATION_PREFIX,
    CURVE_PREFIX,
    SCALE_PREFIX,
    JournalRecord,
    RunIdentity,
    read_identity,
    read_journal,
)
from mergevq_platform.tracking.sending import Sender, chunk
from mergevq_platform.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

UID_TAG = "mergevq.uid"
KIND_TAG = "mergevq.kind"
PARENT_TAG = "mergevq.parent"
EVALUATES_TAG = "mergevq.evaluates"


class DeliveryHeld(InputError):
    """Another process is delivering this journal."""


class RunRefused(RuntimeError):
    """The store answers, but will not take this run; the message says what to do."""


class Delivery:
    """Delivers the journal at `path` to `store`, one chunk per call of `advance`.

    Any exception of `advance` leaves the delivery usable: call it again, later. One process at a time
    delivers a journal; a second one gets `DeliveryHeld`.
    """

    def __init__(self, path: Path, store: Store) -> None:
        self.path = Path(path)
        self.store = store
        self.sender = Sender(self.path.parent)
        self._client: MlflowClient | None = None
        self._position: Position | None = None
        self._parent_linked = False
        self.changed = False  # whether points of a curve, or the run's end, went since someone set it back
        try:
            self._outbox = ExclusiveLock(self.path.with_suffix(".sent.lock"))
        except BlockingIOError:
            raise DeliveryHeld(f"{self.path}: another process is delivering this run; let it end") from None

    @property
    def position(self) -> Position | None:
        """The position that the store has acknowledged; None until it has answered."""
        return self._position

    @property
    def pending_bytes(self) -> int:
        """Bytes of the journal that the store has not acknowledged."""
        position = self._position or read_position(self.path, self.store)
        return self.path.stat().st_size - (position.offset if position else 0)

    def advance(self) -> bool:
        """Send the next records, up to one batch of metrics; False when nothing was left to send."""
        try:
            client, position = self._connect()
            records = chunk(read_journal(self.path, position.offset, position.seq))
            if not records:
                return False
            self.sender.send(client, position.run_id, records)
            reached = Position(position.run_id, position.experiment_id, records[-1].end, records[-1].seq + 1)
            self._acknowledge(reached)
            self.changed |= any(_changes_pages(record) for record in records)
            return True
        except Exception:
            self._position = None  # what the server has taken is in doubt: find it out again
            raise

    def close(self) -> None:
        """Release the journal for other processes."""
        self._outbox.release()

    def _connect(self) -> tuple[MlflowClient, Position]:
        if self._client is None:
            self._client = self.store.client()
        if self._position is None:
            identity = read_identity(self.path)
            found = self._find(self._client, identity)
            if found is None:
                created = self._create(self._client, identity)
                found = self._find(self._client, identity) or created  # one of the twins, should there be any
            run, position = found
            self.sender.latest = {metric.key: metric.step for metric in run.data.to_proto().metrics}
            self._acknowledge(position)
        assert self._position is not None
        if not self._parent_linked:
            self._link_parent(self._client, self._position)
        return self._client, self._position

    def _find(self, client: MlflowClient, identity: RunIdentity) -> tuple[Run, Position] | None:
        position = read_position(self.path, self.store)
        if position is not None:
            run = _existing(client, position.run_id)
            if run is not None:
                if run.info.lifecycle_stage != "active":
                    raise RunRefused(
                        f"run '{identity.name}' was deleted in {self.store.public_uri}: restore it there, "
                        f"or forget that store by removing {sent_file(self.path)}"
                    )
                if not self._fits(position):
                    position = Position(position.run_id, position.experiment_id)
                return run, position
        experiment_id = self.store.experiment_id(client, identity.experiment)
        runs = _with_uid(client, experiment_id, identity.uid)
        if not runs:
            return None
        # The HTTP client repeats a request whose answer is lost, and may have made twins: the fullest stays.
        run, *twins = sorted(runs, key=_fullness, reverse=True)
        for twin in twins:
            if _fullness(twin) == 0:
                client.delete_run(twin.info.run_id)
        return run, Position(run.info.run_id, experiment_id)

    def _create(self, client: MlflowClient, identity: RunIdentity) -> tuple[Run, Position]:
        experiment_id = self.store.experiment_id(client, identity.experiment)
        tags = {
            UID_TAG: identity.uid,
            KIND_TAG: identity.kind,
            PARENT_TAG: identity.parent,
            EVALUATES_TAG: identity.evaluates,
            "mlflow.user": identity.user,
        }
        run = client.create_run(
            experiment_id,
            start_time=identity.created_ms,
            tags={key: value for key, value in tags.items() if value is not None},
            run_name=identity.name,
        )
        return run, Position(run.info.run_id, experiment_id)

    def _link_parent(self, client: MlflowClient, position: Position) -> None:
        # MLflow nests by run id, which the parent has only once its own journal has been delivered.
        identity = read_identity(self.path)
        if identity.parent is not None:
            parents = _with_uid(client, position.experiment_id, identity.parent)
            if not parents:
                return
            client.set_tag(position.run_id, "mlflow.parentRunId", parents[0].info.run_id)
        self._parent_linked = True

    def _acknowledge(self, position: Position) -> None:
        write_position(self.path, self.store, position)
        self._position = position

    def _fits(self, position: Position) -> bool:
        # After a power failure the journal may be shorter than what was acknowledged.
        if position.offset > self.path.stat().st_size:
            return False
        try:
            next(read_journal(self.path, position.offset, position.seq), None)
        except InputError:
            return False
        return True


def _changes_pages(record: JournalRecord) -> bool:
    match record.kind:
        case "metrics":
            return any(
                key.startswith((CURVE_PREFIX, SCALE_PREFIX, ALLOCATION_PREFIX))
                for key in record.data["values"]
            )
        case "status":
            return record.data["status"] != "RUNNING"
    return False


def _existing(client: MlflowClient, run_id: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _with_uid(client: MlflowClient, experiment_id: str, uid: str) -> list[Run]:
    found = client.search_runs([experiment_id], f"tags.`{UID_TAG}` = '{uid}'")
    return sorted(found, key=lambda run: run.info.run_id)


def _fullness(run: Run) -> int:
    return len(run.data.params) + len(run.data.metrics)
