"""Delivery of a journal to MLflow: in order, in batches, each (key, step) exactly once.

Beside the journal lies `journal.sent.json`: per store, the run's id there and how far the store has
acknowledged. It is written after the server's answer, so that a crash in between leaves a batch in doubt.
Therefore a metric whose step is not beyond the server's latest is compared with its history before it goes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergevq.errors import InputError
from mergevq_platform.tracking.locks import ExclusiveLock
from mergevq_platform.tracking.records import Record, RunIdentity, read_identity, read_journal
from mergevq_platform.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

UID_TAG = "mergevq.uid"
KIND_TAG = "mergevq.kind"
PARENT_TAG = "mergevq.parent"
EVALUATES_TAG = "mergevq.evaluates"

# MLflow's limits for one log_batch request and for single values.
_METRICS_PER_BATCH = 1000
_TEXTS_PER_BATCH = 100
_BYTES_PER_BATCH = 500_000
_PARAM_CHARS = 6000
_TAG_CHARS = 8000


class Busy(InputError):
    """Another process is delivering this journal."""


class Refused(RuntimeError):
    """The store answers, but will not take this run; the message says what to do."""


@dataclass(frozen=True)
class Position:
    """How far one store has acknowledged a journal: the run's ids there, and where the next record begins."""

    run_id: str
    experiment_id: str
    offset: int = 0
    seq: int = 0


class Delivery:
    """Brings the journal at `path` to `store`, one chunk per call of `advance`.

    Any exception of `advance` leaves the delivery usable: call it again, later. One process at a time
    delivers a journal; a second one gets `Busy`.
    """

    def __init__(self, path: Path, store: Store) -> None:
        self.path = Path(path)
        self.store = store
        self.sent_metrics = 0
        self.missing_artifacts: list[str] = []
        self._sidecar = self.path.with_suffix(".sent.json")
        self._client: MlflowClient | None = None
        self._position: Position | None = None
        self._latest: dict[str, int] = {}
        self._parent_linked = False
        try:
            self._outbox = ExclusiveLock(self.path.with_suffix(".sent.lock"))
        except BlockingIOError:
            raise Busy(f"{self.path}: another process is delivering this run; let it end") from None

    @property
    def position(self) -> Position | None:
        """Where the store stands, once it has answered."""
        return self._position

    @property
    def pending_bytes(self) -> int:
        """Bytes of the journal that the store has not acknowledged."""
        position = self._position or self._read_position()
        return self.path.stat().st_size - (position.offset if position else 0)

    def advance(self) -> bool:
        """Send the next records, up to one batch of metrics; False when nothing was left to send."""
        try:
            client, position = self._connect()
            records = _chunk(read_journal(self.path, position.offset, position.seq))
            if not records:
                return False
            self._send(client, position.run_id, records)
            reached = Position(position.run_id, position.experiment_id, records[-1].end, records[-1].seq + 1)
            self._acknowledge(reached)
            return True
        except Exception:
            self._position = None  # what the server has taken is in doubt: ask it again
            raise

    def close(self) -> None:
        """Let others deliver."""
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
            self._latest = {metric.key: metric.step for metric in run.data.to_proto().metrics}
            self._acknowledge(position)
        assert self._position is not None
        if not self._parent_linked:
            self._link_parent(self._client, self._position)
        return self._client, self._position

    def _find(self, client: MlflowClient, identity: RunIdentity) -> tuple[Run, Position] | None:
        position = self._read_position()
        if position is not None:
            run = _existing(client, position.run_id)
            if run is not None:
                if run.info.lifecycle_stage != "active":
                    raise Refused(
                        f"run '{identity.name}' was deleted in {self.store.public_uri}: restore it there, "
                        f"or forget that store by removing {self._sidecar}"
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

    def _send(self, client: MlflowClient, run_id: str, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        metrics: list[Metric] = []
        for record in records:
            match record.kind:
                case "params":
                    params |= record.data
                case "tags":
                    tags |= record.data
                case "metrics":
                    metrics += [
                        Metric(key, float(value), record.time_ms, record.data["step"])
                        for key, value in record.data["values"].items()
                    ]
        for param_batch in _batches(self._new_params(client, run_id, params, tags).items()):
            client.log_batch(
                run_id, params=[Param(key, _cut(text, _PARAM_CHARS)) for key, text in param_batch]
            )
        for tag_batch in _batches(tags.items()):
            client.log_batch(run_id, tags=[RunTag(key, _cut(text, _TAG_CHARS)) for key, text in tag_batch])
        for key, text in [*params.items(), *tags.items()]:
            if len(text) > (_PARAM_CHARS if key in params else _TAG_CHARS):
                client.log_text(run_id, text, f"long_values/{key.replace('/', '_')}.txt")
        metrics = self._new_metrics(client, run_id, metrics)
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            batch = metrics[start : start + _METRICS_PER_BATCH]
            client.log_batch(run_id, metrics=batch)
            self.sent_metrics += len(batch)
            for metric in batch:
                self._latest[metric.key] = max(metric.step, self._latest.get(metric.key, metric.step))
        for record in records:
            match record.kind:
                case "artifact":
                    self._send_artifact(client, run_id, record)
                case "dataset":
                    _send_dataset(client, run_id, record)
        statuses = [record for record in records if record.kind == "status"]
        if statuses:
            _send_status(client, run_id, statuses[-1])

    def _new_params(
        self, client: MlflowClient, run_id: str, params: dict[str, str], tags: dict[str, str]
    ) -> dict[str, str]:
        if not params:
            return {}
        there = client.get_run(run_id).data.params
        for key, text in params.items():
            if key in there and there[key] != _cut(text, _PARAM_CHARS):
                tags[f"changed.{key}"] = text  # MLflow's parameters cannot be changed
        return {key: text for key, text in params.items() if key not in there}

    def _new_metrics(self, client: MlflowClient, run_id: str, metrics: list[Metric]) -> list[Metric]:
        histories: dict[str, set[int]] = {}
        new = []
        for metric in metrics:
            if metric.step <= self._latest.get(metric.key, -1):
                if metric.key not in histories:
                    history = client.get_metric_history(run_id, metric.key)
                    histories[metric.key] = {known.step for known in history}
                if metric.step in histories[metric.key]:
                    continue
            new.append(metric)
        return new

    def _send_artifact(self, client: MlflowClient, run_id: str, record: Record) -> None:
        file = self.path.parent / record.data["file"]
        if file.is_file():
            client.log_artifact(run_id, str(file), record.data["directory"] or None)
        else:
            self.missing_artifacts.append(record.data["file"])

    def _acknowledge(self, position: Position) -> None:
        stores = self._read_sidecar()
        stores[self.store.public_uri] = vars(position)
        new = self._sidecar.with_suffix(".json.new")
        new.write_text(json.dumps(stores, indent=1))
        os.replace(new, self._sidecar)
        self._position = position

    def _read_position(self) -> Position | None:
        entry = self._read_sidecar().get(self.store.public_uri)
        return Position(**entry) if entry else None

    def _read_sidecar(self) -> dict[str, Any]:
        try:
            return json.loads(self._sidecar.read_text())
        except (FileNotFoundError, ValueError):
            return {}  # then the run is found by its uid, and everything is compared

    def _fits(self, position: Position) -> bool:
        # After a power failure the journal may be shorter than what was acknowledged.
        if position.offset > self.path.stat().st_size:
            return False
        try:
            next(read_journal(self.path, position.offset, position.seq), None)
        except InputError:
            return False
        return True


def acknowledged(path: Path, store: Store) -> bool:
    """Whether `store` has acknowledged all of the journal at `path`, by what lies beside it."""
    try:
        stores = json.loads(path.with_suffix(".sent.json").read_text())
    except (FileNotFoundError, ValueError):
        return False
    entry = stores.get(store.public_uri)
    return entry is not None and entry["offset"] >= path.stat().st_size


def _chunk(records: Iterator[Record]) -> list[Record]:
    chunk: list[Record] = []
    count = 0
    for record in records:
        size = len(record.data["values"]) if record.kind == "metrics" else 1
        if chunk and count + size > _METRICS_PER_BATCH:
            break
        chunk.append(record)
        count += size
    return chunk


def _batches(items: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for key, text in items:
        cost = len(key) + min(len(text), _TAG_CHARS) * 4
        if batch and (len(batch) == _TEXTS_PER_BATCH or size + cost > _BYTES_PER_BATCH):
            yield batch
            batch, size = [], 0
        batch.append((key, text))
        size += cost
    if batch:
        yield batch


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


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


def _send_dataset(client: MlflowClient, run_id: str, record: Record) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = record.data
    source = json.dumps({"uri": data["source"]})
    dataset = Dataset(name=data["name"], digest=data["digest"], source_type="local", source=source)
    tag = InputTag("mlflow.data.context", data["context"])
    client.log_inputs(run_id, [DatasetInput(dataset=dataset, tags=[tag])])


def _send_status(client: MlflowClient, run_id: str, record: Record) -> None:
    status = record.data["status"]
    if status == "RUNNING":
        client.update_run(run_id, status=status)
    else:
        client.set_terminated(run_id, status, record.time_ms)
