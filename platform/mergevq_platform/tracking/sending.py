"""The records of a journal as MLflow's requests, in batches within MLflow's limits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mergevq_platform.tracking.notes import NOTE_TAG, may_write, sealed
from mergevq_platform.tracking.records import JournalRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

# MLflow's limits for one log_batch request and for single values.
METRICS_PER_BATCH = 1000
_TEXTS_PER_BATCH = 100
_BYTES_PER_BATCH = 500_000
_PARAM_CHARS = 6000
_TAG_CHARS = 8000


@dataclass
class Sender:
    """Sends records of the run in `run_dir`, each (key, step) exactly once, and counts what went."""

    run_dir: Path
    latest: dict[str, int] = field(default_factory=dict)  # metric -> the highest step that the store has
    sent_metrics: int = 0
    missing_artifacts: list[str] = field(default_factory=list)

    def send(self, client: MlflowClient, run_id: str, records: Sequence[JournalRecord]) -> None:
        """Send `records`: parameters, tags, metrics, files and data, and the last state."""
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        for record in records:
            match record.kind:
                case "params":
                    params |= record.data
                case "tags":
                    tags |= record.data
        _send_texts(client, run_id, params, tags)
        self._send_metrics(client, run_id, records)
        for record in records:
            match record.kind:
                case "artifact":
                    self._send_artifact(client, run_id, record)
                case "dataset":
                    _send_dataset(client, run_id, record)
        statuses = [record for record in records if record.kind == "status"]
        if statuses:
            _send_status(client, run_id, statuses[-1])

    def _send_metrics(self, client: MlflowClient, run_id: str, records: Sequence[JournalRecord]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(key, float(value), record.time_ms, record.data["step"])
            for record in records
            if record.kind == "metrics"
            for key, value in record.data["values"].items()
        ]
        metrics = self._new_metrics(client, run_id, metrics)
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            batch = metrics[start : start + METRICS_PER_BATCH]
            client.log_batch(run_id, metrics=batch)
            self.sent_metrics += len(batch)
            for metric in batch:
                self.latest[metric.key] = max(metric.step, self.latest.get(metric.key, metric.step))

    def _new_metrics(self, client: MlflowClient, run_id: str, metrics: list[Metric]) -> list[Metric]:
        histories: dict[str, set[int]] = {}
        new = []
        for metric in metrics:
            if metric.step <= self.latest.get(metric.key, -1):
                if metric.key not in histories:
                    history = client.get_metric_history(run_id, metric.key)
                    histories[metric.key] = {known.step for known in history}
                if metric.step in histories[metric.key]:
                    continue
            new.append(metric)
        return new

    def _send_artifact(self, client: MlflowClient, run_id: str, record: JournalRecord) -> None:
        file = self.run_dir / record.data["file"]
        if file.is_file():
            client.log_artifact(run_id, str(file), record.data["directory"] or None)
        else:
            self.missing_artifacts.append(record.data["file"])


def chunk(records: Iterator[JournalRecord]) -> list[JournalRecord]:
    """The next records, up to one batch of metrics."""
    found: list[JournalRecord] = []
    count = 0
    for record in records:
        size = len(record.data["values"]) if record.kind == "metrics" else 1
        if found and count + size > METRICS_PER_BATCH:
            break
        found.append(record)
        count += size
    return found


def _send_texts(client: MlflowClient, run_id: str, params: dict[str, str], tags: dict[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    run = client.get_run(run_id).data if params or NOTE_TAG in tags else None
    there = run.params if run else {}
    if NOTE_TAG in tags and run:
        if may_write(run.tags, former=(there.get("description", ""),)):
            tags[NOTE_TAG] = sealed(tags[NOTE_TAG], run_id)
        else:
            del tags[NOTE_TAG]  # someone's own, and it stays
    for key, text in params.items():
        if key in there and there[key] != _cut(text, _PARAM_CHARS):
            tags[f"changed.{key}"] = text  # MLflow's parameters cannot be changed
    for batch in _batches((key, text) for key, text in params.items() if key not in there):
        client.log_batch(run_id, params=[Param(key, _cut(text, _PARAM_CHARS)) for key, text in batch])
    for batch in _batches(tags.items()):
        client.log_batch(run_id, tags=[RunTag(key, _cut(text, _TAG_CHARS)) for key, text in batch])
    for key, text in [*params.items(), *tags.items()]:
        if len(text) > (_PARAM_CHARS if key in params else _TAG_CHARS):
            client.log_text(run_id, text, f"long_values/{key.replace('/', '_')}.txt")


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


def _send_dataset(client: MlflowClient, run_id: str, record: JournalRecord) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = record.data
    source = json.dumps({"uri": data["source"]})
    dataset = Dataset(name=data["name"], digest=data["digest"], source_type="local", source=source)
    tag = InputTag("mlflow.data.context", data["context"])
    client.log_inputs(run_id, [DatasetInput(dataset=dataset, tags=[tag])])


def _send_status(client: MlflowClient, run_id: str, record: JournalRecord) -> None:
    status = record.data["status"]
    if status == "RUNNING":
        client.update_run(run_id, status=status)
    else:
        client.set_terminated(run_id, status, record.time_ms)
