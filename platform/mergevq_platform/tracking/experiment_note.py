"""The note of an experiment in MLflow: the best run so far of every goal, and the way to the trade-off.

It stands above the charts, folded to its first line. Numbers are compared within one protocol: that of the newest evaluated
run comes first, others have a line each.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergevq_platform.tracking.acknowledged import Position
from mergevq_platform.tracking.delivery import UID_TAG
from mergevq_platform.tracking.links import curve_link
from mergevq_platform.tracking.listing import as_recorded
from mergevq_platform.tracking.notes import NOTE_TAG, may_write, sealed
from mergevq_platform.tracking.protocols import FORMER_TAG, PROTOCOL_TAG, protocol_of
from mergevq_platform.tracking.records import (
    CURVE_BEST_PREFIX,
    CURVE_PREFIX,
    SCALE_BEST_PREFIX,
    SCALE_PREFIX,
    TEST_PREFIX,
    is_frechet,
)
from mergevq_platform.tracking.shared_view import EXPERIMENT_VIEW
from mergevq_platform.tracking.store import Store, reason_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

PROTOCOLS = 4  # that have a line
KEY_RUNS = 25  # the newest of a protocol say which metrics it has: each run is read whole, and every trial's end reads them
FORMER_RUNS = 200  # of before there was a best: the newest, whose curves are read point by point
_SUFFICES = {  # what a best was reached with, by the metric's prefix
    CURVE_BEST_PREFIX: lambda step: f" with {step} kept tokens",
    SCALE_BEST_PREFIX: lambda step: f" at guidance scale {step / 100:g}",
    f"{TEST_PREFIX}top1": lambda step: "",
}
_POINTS = {CURVE_BEST_PREFIX: CURVE_PREFIX, SCALE_BEST_PREFIX: SCALE_PREFIX}


@dataclass(frozen=True)
class _Best:
    key: str  # of the metric, without prefix
    value: float
    reached: str
    run: Run

    def beats(self, other: _Best | None) -> bool:
        if other is None or self.value == other.value:
            return other is None
        return (self.value < other.value) == is_frechet(self.key)


def keep_note(store: Store, position: Position, *, changed: bool, viewed: bool) -> None:
    """After a delivery: bring the note of the experiment up to date where the run at `position` `changed`.

    `viewed`: its shared view is there, and the note leads to it. Nothing is raised: a note that cannot be written is a warning.
    """
    if not changed:
        return
    try:
        write_note(store.client(), position.experiment_id, view=EXPERIMENT_VIEW if viewed else None)
    except Exception as error:  # whatever it is, it costs the note alone
        log.warning(
            "tracking store %s: the note of its experiment was not renewed: %s",
            store.public_uri,
            reason_of(error),
        )


def write_note(client: MlflowClient, experiment_id: str, *, view: str | None = None) -> bool:
    """Bring the note of an experiment up to date; whether it was written. A note that someone wrote or edited stays.

    It leads to the shared view `view`, or to the plain page of the charts.
    """
    experiment = client.get_experiment(experiment_id)
    if not may_write(experiment.tags):
        return False
    lines = [
        line for found in _protocols(client, experiment_id) if (line := _line(client, experiment_id, found))
    ]
    if not lines:
        return False
    page = curve_link(".", experiment_id, view=view).removeprefix("./")  # "#/…": it holds behind any prefix
    first, *others = lines
    text = f"{first}: [trade-off page]({page})" + "".join(
        f"\n\nBy another protocol: {line}" for line in others
    )
    note = sealed(text)
    if experiment.tags.get(NOTE_TAG) == note:
        return False
    client.set_experiment_tag(experiment_id, NOTE_TAG, note)
    return True


def _protocols(client: MlflowClient, experiment_id: str) -> list[str]:
    """The ids of the protocols of an experiment's runs, the newest first."""
    found: list[str] = []
    while len(found) < PROTOCOLS:
        unlike = "".join(f" and tags.`{PROTOCOL_TAG}` != '{known}'" for known in found)
        filters = f"tags.`{PROTOCOL_TAG}` != ''{unlike}"
        newest = client.search_runs(
            [experiment_id], filters, order_by=["attributes.start_time DESC"], max_results=1
        )
        if not newest:
            break
        found.append(newest[0].data.tags[PROTOCOL_TAG])
    former = (protocol_of(run.data.tags) for run in _former(client, experiment_id))
    return list(dict.fromkeys([*found, *(known for known in former if known)]))[:PROTOCOLS]


def _line(client: MlflowClient, experiment_id: str, protocol: str) -> str | None:
    best: dict[str, _Best] = {}
    for found in (*_ranked(client, experiment_id, protocol), *_of_former(client, experiment_id, protocol)):
        if found.beats(best.get(found.key)):
            best[found.key] = found
    goals = sorted(best.values(), key=lambda goal: (not is_frechet(goal.key), goal.key))
    if not goals:
        return None
    links = [_link(goal.run, experiment_id) for goal in goals]
    if len(set(links)) == 1:  # named once: MLflow cuts the line at the window's edge
        return f"{', '.join(map(_said, goals))} ({links[0]})"
    return ", ".join(f"{_said(goal)} ({link})" for goal, link in zip(goals, links, strict=True))


def _ranked(client: MlflowClient, experiment_id: str, protocol: str) -> Iterator[_Best]:
    of_protocol = f"tags.`{PROTOCOL_TAG}` = '{protocol}'"
    newest = client.search_runs(
        [experiment_id], of_protocol, order_by=["attributes.start_time DESC"], max_results=KEY_RUNS
    )
    keys = {key for run in newest for key in run.data.metrics if key.startswith(tuple(_SUFFICES))}
    for key in sorted(keys):
        order = "ASC" if is_frechet(key.partition("/")[2]) else "DESC"
        found = client.search_runs(
            [experiment_id], of_protocol, order_by=[f"metrics.`{key}` {order}"], max_results=1
        )
        for run in found:
            (metric,) = [metric for metric in run.data.to_proto().metrics if metric.key == key]
            yield _of(run, key, metric)


def _former(client: MlflowClient, experiment_id: str) -> list[Run]:
    filters = f"tags.`{FORMER_TAG}` != '' and tags.`{UID_TAG}` != ''"
    found = client.search_runs(
        [experiment_id], filters, order_by=["attributes.start_time DESC"], max_results=FORMER_RUNS
    )
    return [run for run in found if PROTOCOL_TAG not in run.data.tags]


def _of_former(client: MlflowClient, experiment_id: str, protocol: str) -> Iterator[_Best]:
    """The best of runs of before, from all points of their curves."""
    for run in _former(client, experiment_id):
        if protocol_of(run.data.tags) != protocol:
            continue
        for best, points in _POINTS.items():
            for key in ("probe_top1_cls", run.data.tags.get("protocol.frechet_key", "")):
                if f"{points}{key}" in run.data.metrics:
                    for metric in client.get_metric_history(run.info.run_id, f"{points}{key}"):
                        yield _of(run, f"{best}{key}", metric)
        if (key := f"{TEST_PREFIX}top1") in run.data.metrics:
            yield _Best("top1", run.data.metrics[key], "", run)


def _of(run: Run, key: str, metric: Metric) -> _Best:
    reached = next(said for prefix, said in _SUFFICES.items() if key.startswith(prefix))
    return _Best(key.partition("/")[2], as_recorded(metric.value), reached(metric.step), run)


def _said(best: _Best) -> str:
    what = f"Fréchet distance (`{best.key}`)" if is_frechet(best.key) else best.key.split("_")[0]
    value = f"{best.value:.3g}" if is_frechet(best.key) else f"{best.value:.1f}%"
    return f"best {what} **{value}**{best.reached}"


def _link(run: Run, experiment_id: str) -> str:
    page = f"#/experiments/{experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
    return f"[{run.info.run_name}]({page})"
