"""A trained tokenizer becomes a registered model of MLflow, with its curve and its data."""

from __future__ import annotations

from pathlib import Path

from mergevq.errors import InputError
from mergevq.hub import short_name
from mergevq_platform.evaluation.stored_reports import own_report
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.lookup import find
from mergevq_platform.tracking.listing import TrackedRun, find_run, list_runs, stored_curve
from mergevq_platform.tracking.models import Registered, check_target, register_model
from mergevq_platform.tracking.records import JOURNAL_NAME, read_identity
from mergevq_platform.tracking.store import Store


def register(
    name: str,
    model: str,
    *,
    home: Path,
    alias: str | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> Registered:
    """Register the newest checkpoint of a run as the MLflow model `model`, under `alias`, with its curve and data.

    Raises `InputError` for a name that is no run of the store, and for a model's name or alias that cannot be.
    """
    check_target(model, alias)
    store = Store.at(home, tracking_uri)
    found = find(name, home=home, store=store, storage=storage)
    tracked = found.tracked
    if found.run is not None:
        tracked = find_run(store, read_identity(found.run.directory / JOURNAL_NAME).uid)
    if tracked is None:
        raise InputError(f"{name} has no run in {store.public_uri}: only a run's tokenizer can be registered")
    again = [run for run in list_runs(store, tracked.experiment) if run.evaluates == tracked.uid]
    measured = next((run for run in [tracked, *again] if run.has_curve), None)
    dataset = _dataset(store, measured, home) if measured is not None else None
    with checkpoints.weights(found.checkpoint) as directory:
        return register_model(
            store,
            tracked,
            directory,
            name=model,
            alias=alias,
            step=found.step,
            image_size=found.recipe.tokenizer.model.image_size,
            curve=stored_curve(store, measured) if measured else {},
            dataset=dataset,
        )


def _dataset(store: Store, measured: TrackedRun, home: Path) -> tuple[str, str] | None:
    """(name, digest) of the data of an evaluation. Runs of before have its whole protocol as tags, others in their report."""
    protocol = {key: measured.tags.get(f"protocol.{key}") for key in ("data", "data_fingerprint")}
    if None in protocol.values():
        report = own_report(store, measured, home / "evaluations")
        if report is None:
            return None
        protocol = report.protocol
    return short_name(str(protocol["data"])), str(protocol["data_fingerprint"])[:36]
