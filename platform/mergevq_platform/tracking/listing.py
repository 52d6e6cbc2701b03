"""The runs of a store: list them, find one, read its curve, remove it."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergevq.errors import InputError
from mergevq_platform.tracking.delivery import EVALUATES_TAG, KIND_TAG, PARENT_TAG, UID_TAG
from mergevq_platform.tracking.records import (
    ALLOCATION_KEY,
    CURVE_DETAILS_PREFIX,
    CURVE_PREFIX,
    KEPT_KEY,
    SCALE_PREFIX,
    WENT_ON,
    YIELDED_TAG,
)
from mergevq_platform.tracking.store import Store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

_PAGE = 1000
_OURS = f"tags.`{UID_TAG}` != ''"


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """One run as a store knows it; `metrics` holds the latest values."""

    uid: str
    name: str
    kind: str
    status: str
    experiment: str
    experiment_id: str
    run_id: str
    started_ms: int
    ended_ms: int | None
    parent: str | None
    evaluates: str | None
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def state(self) -> str:
        """The status in small letters; `yielded` while the run waits for an urgent job to end."""
        yielded = self.tags.get(YIELDED_TAG, WENT_ON)
        away = self.status == "RUNNING" and not yielded.endswith(WENT_ON)
        return "yielded" if away else self.status.lower()

    @property
    def has_curve(self) -> bool:
        """Whether the run carries a curve."""
        return any(key.startswith((CURVE_PREFIX, SCALE_PREFIX)) for key in self.metrics)

    @property
    def has_charts(self) -> bool:
        """Whether the run carries a curve or a comparison of allocators: what pages are made of."""
        return self.has_curve or ALLOCATION_KEY in self.metrics


def list_runs(store: Store, experiment: str | None = None) -> list[TrackedRun]:
    """The runs of ours in `store`, newest first; of one experiment, or of all."""
    with store.session() as client:
        return _listed(client, experiment)


def newest_runs(client: MlflowClient, experiment: Experiment, count: int) -> list[TrackedRun]:
    """The newest `count` runs of ours in an experiment, newest first."""
    page = client.search_runs(
        [experiment.experiment_id], _OURS, order_by=["attributes.start_time DESC"], max_results=count
    )
    return [_tracked(run, experiment.name) for run in page]


def run_where(client: MlflowClient, experiment: Experiment, filter_string: str) -> TrackedRun | None:
    """A run of ours in an experiment by MLflow's search filter; None where there is none."""
    page = client.search_runs([experiment.experiment_id], f"{_OURS} and {filter_string}", max_results=1)
    return _tracked(page[0], experiment.name) if page else None


def _listed(client: MlflowClient, experiment: str | None) -> list[TrackedRun]:
    names = {found.experiment_id: found.name for found in client.search_experiments(max_results=_PAGE)}
    if experiment is not None:
        names = {key: name for key, name in names.items() if name == experiment}
    if not names:
        return []
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            list(names),
            _OURS,
            order_by=["attributes.start_time DESC"],
            max_results=_PAGE,
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return [_tracked(run, names[run.info.experiment_id]) for run in runs]


def find_run(store: Store, key: str) -> TrackedRun:
    """The run whose name, uid, run id, or beginning of either id (6 characters or more) is `key`.

    Raises `InputError` where there is none, or more than one.
    """
    runs = list_runs(store)
    exact = [run for run in runs if key in (run.name, run.uid, run.run_id)]
    found = exact or [
        run for run in runs if len(key) >= 6 and (run.uid + " " + run.run_id).find(key) in (0, 33)
    ]
    if not found:
        raise InputError(f"no run '{key}' in {store.public_uri}: see `mergevq runs list`")
    if len(found) > 1:
        ids = ", ".join(run.uid[:12] for run in found[:5])
        raise InputError(
            f"{len(found)} runs are called '{key}' in {store.public_uri}: name one by its id ({ids})"
        )
    return found[0]


def stored_curve(store: Store, run: TrackedRun) -> dict[str, dict[int, float]]:
    """The curve of `run` with its details from the store's history: key -> kept tokens -> value, sorted by key.

    Runs of before have the details among the rest.
    """
    curve: dict[str, dict[int, float]] = {}
    with store.session() as client:
        for key in sorted(run.metrics):
            if key.startswith((CURVE_PREFIX, CURVE_DETAILS_PREFIX)) and key != KEPT_KEY:
                # The history comes in order of time, and points may have been measured in any order.
                history = client.get_metric_history(run.run_id, key)
                points = sorted((metric.step, as_recorded(metric.value)) for metric in history)
                curve[key.partition("/")[2]] = dict(points)
    return dict(sorted(curve.items()))


def remove_run(store: Store, run: TrackedRun) -> None:
    """Move `run` to the store's trash, from where MLflow can restore it."""
    with store.session() as client:
        client.delete_run(run.run_id)


def _tracked(run: Run, experiment: str) -> TrackedRun:
    tags = run.data.tags
    return TrackedRun(
        uid=tags[UID_TAG],
        name=run.info.run_name or "",
        kind=tags.get(KIND_TAG, ""),
        status=run.info.status,
        experiment=experiment,
        experiment_id=run.info.experiment_id,
        run_id=run.info.run_id,
        started_ms=run.info.start_time,
        ended_ms=run.info.end_time,
        parent=tags.get(PARENT_TAG),
        evaluates=tags.get(EVALUATES_TAG),
        params=dict(run.data.params),
        tags=dict(tags),
        metrics={key: as_recorded(value) for key, value in run.data.metrics.items()},
    )


def as_recorded(value: float) -> float:
    """A metric as it was before a store took it: MLflow keeps infinity as the largest number that there is."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value
