"""Shared views of an experiment in MLflow: written after a delivery, written again where one is missing, and linked to.

A view is a tag of the experiment (`view_state.py`) in the form that the server's own page reads. It is made from what
the runs have (`view_sections.py`), so it is written again when that changes. A view that cannot be written costs the
view alone: records are delivered, and links lead to the plain page.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mergevq_platform.tracking.acknowledged import Position
from mergevq_platform.tracking.delivery import UID_TAG
from mergevq_platform.tracking.links import curve_link
from mergevq_platform.tracking.listing import TrackedRun, newest_runs, run_where
from mergevq_platform.tracking.page_images import IMAGES_TAG
from mergevq_platform.tracking.records import KEPT_KEY, now_ms
from mergevq_platform.tracking.store import Store, import_mlflow, reason_of
from mergevq_platform.tracking.view_sections import experiment_page, run_page, sweep_page
from mergevq_platform.tracking.view_state import TAG_PREFIX, PageState, decoded, encoded

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

EXPERIMENT_VIEW = "mergevq"
VIEWED_RUNS = (
    50  # the newest runs of an experiment decide what its view shows; every trial's end reads them whole
)
KEPT_VIEWS = 40  # views of single runs in an experiment; those of older runs are removed
PATIENCE_SECONDS = 10.0  # of a link that asks a server
_FIRST, _ENVELOPES = (
    (3, 10),
    (3, 15),
)  # versions of MLflow: the lowest that is known to open a view, and to read names


class ViewRefused(RuntimeError):
    """The views cannot be written there; the message says why."""


@dataclass(frozen=True)
class Link:
    """An address of the curves; `reason` says why it is the plain page's, None where it opens on a shared view."""

    address: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.address}  (the plain page: {self.reason})" if self.reason else self.address


def view_of(run: TrackedRun) -> str:
    """The key of the view of one run, or of the trials of a sweep."""
    return f"{EXPERIMENT_VIEW}-{run.uid[:12]}"


def write_views(store: Store, client: MlflowClient, experiment_id: str, run_id: str | None = None) -> str:
    """Bring the view of an experiment up to date, and that of the run `run_id`, or of the sweep that it is a trial of.

    Returns the key of the view that shows the run, or the experiment. What stands there already is left alone. Raises
    `ViewRefused` for a server whose page is too old, and what the client raises.
    """
    envelope = _takes_envelope(store, client)
    experiment = client.get_experiment(experiment_id)
    runs = newest_runs(client, experiment, VIEWED_RUNS)
    kept = _first_count(client, runs)
    key = EXPERIMENT_VIEW
    views = {key: ("MergeVQ: trade-off", experiment_page(runs, kept))}
    if run_id is not None:
        run = next((found for found in runs if found.run_id == run_id), None)
        run = run or run_where(client, experiment, f"attributes.run_id = '{run_id}'")
        sweep = run and _sweep_of(client, experiment, run)
        if sweep is not None:
            trials = [found for found in runs if found.parent == sweep.uid]
            key, page = view_of(sweep), sweep_page(sweep.uid, trials, kept)
            views[key] = (f"Sweep {sweep.name}", page)
        elif run is not None and run.has_charts:
            key = view_of(run)
            views[key] = (run.name, run_page(run, kept))
    for tag, (name, page) in views.items():
        _write(client, experiment, tag, name if envelope else None, page)
    _remove_old(client, experiment, [view_of(run) for run in runs], set(views))
    return key


def keep_up(store: Store, position: Position, *, changed: bool) -> str | None:
    """After a delivery: bring the views up to date where the run at `position` `changed`, else only where there is none.

    Someone may have deleted the view. Returns why there is none; nothing is raised.
    """
    try:
        client = store.client()
        tag = f"{TAG_PREFIX}{EXPERIMENT_VIEW}"
        if changed or tag not in client.get_experiment(position.experiment_id).tags:
            write_views(store, client, position.experiment_id, position.run_id)
    except ViewRefused as refused:
        return str(refused)
    except Exception as error:  # whatever it is, it costs the view alone
        return f"no view was written, {reason_of(error)}"
    return None


def link(
    store: Store,
    base_url: str,
    experiment: str,
    run: str | None = None,
    *,
    through: Callable[[str], str] = str,
) -> Link | None:
    """The address of an experiment's curves, or of those of the run of that name, in the interface at `base_url`.

    It opens on the shared view once that is there, written now if need be, and leads `through` a landing page. None where
    the store knows no such experiment. A server that takes longer than `PATIENCE_SECONDS` gets the plain address.
    """
    answer: list[Link | None] = []
    thread = threading.Thread(
        target=lambda: answer.append(_link(store, base_url, experiment, run)), name="shared-view", daemon=True
    )
    thread.start()
    thread.join(PATIENCE_SECONDS if store.is_server else None)
    found = answer[0] if answer else Link(base_url, "it took too long to answer")
    return found and replace(found, address=through(found.address))


def _link(store: Store, base_url: str, experiment: str, run: str | None) -> Link | None:
    address, run_id = base_url, None
    try:
        client = store.client()
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        address = curve_link(base_url, found.experiment_id)
        if run is not None:
            named = run_where(client, found, f"attributes.run_name = '{run}'")
            run_id = named.run_id if named else None
        key = write_views(store, client, found.experiment_id, run_id)
        return Link(curve_link(base_url, found.experiment_id, view=key))
    except ViewRefused as refused:
        return Link(address, str(refused))
    except Exception as error:  # whatever it is, it costs the view alone
        return Link(address, f"no view was written, {reason_of(error)}")


def _sweep_of(client: MlflowClient, experiment: Experiment, run: TrackedRun) -> TrackedRun | None:
    if run.kind == "sweep":
        return run
    return run_where(client, experiment, f"tags.`{UID_TAG}` = '{run.parent}'") if run.parent else None


def _takes_envelope(store: Store, client: MlflowClient) -> bool:
    version = _page_version(store, client)
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if not numbers or numbers < _FIRST:
        least = ".".join(map(str, _FIRST))
        raise ViewRefused(f"the server is MLflow {version}, and views need {least} or newer")
    return numbers >= _ENVELOPES


def _page_version(store: Store, client: MlflowClient) -> str:
    """The version of the MLflow whose pages people open: the server's, or the one that `mergevq ui` starts here."""
    mlflow = import_mlflow()
    if store.uri.startswith("databricks"):
        raise ViewRefused("Databricks has pages of its own")
    if not store.is_server:
        return str(mlflow.__version__)
    from mlflow.utils.rest_utils import http_request

    answer = http_request(client._tracking_client.store.get_host_creds(), "/version", "GET")
    text = (
        answer.content[:40].decode(errors="replace").strip()
    )  # `text` would guess an encoding of these few bytes
    if answer.status_code != 200 or not re.match(r"\d+\.\d+", text):
        raise ViewRefused(f"the server does not tell its version (it answers {answer.status_code})")
    return text


def _first_count(client: MlflowClient, runs: Sequence[TrackedRun]) -> int:
    """The kept count that the image slider stands at before someone moves it: a small one, where counts differ most."""
    for run in runs:
        if IMAGES_TAG in run.tags and KEPT_KEY in run.metrics:
            steps = sorted({point.step for point in client.get_metric_history(run.run_id, KEPT_KEY)})
            return steps[len(steps) // 4]
    return 0


def _write(client: MlflowClient, experiment: Experiment, key: str, name: str | None, page: PageState) -> None:
    state, tag = page.tree(), f"{TAG_PREFIX}{key}"
    before = decoded(experiment.tags.get(tag, ""))
    if before is not None and (before.state, before.name) == (state, name):
        return
    now = now_ms()
    created = before.created_ms if before and before.created_ms else now
    value = encoded(state, name=name, created_ms=created, updated_ms=now)
    client.set_experiment_tag(experiment.experiment_id, tag, value)


def _remove_old(
    client: MlflowClient, experiment: Experiment, newest: Sequence[str], written: set[str]
) -> None:
    """Remove views of runs that are gone, and all but the newest `KEPT_VIEWS`: every page load carries them."""
    from mlflow.exceptions import MlflowException

    prefix = f"{TAG_PREFIX}{EXPERIMENT_VIEW}-"
    there = [tag for tag in experiment.tags if tag.startswith(prefix)]
    kept = [key for key in newest if f"{TAG_PREFIX}{key}" in there][:KEPT_VIEWS]
    for tag in there:
        if tag.removeprefix(TAG_PREFIX) not in written.union(kept):
            with contextlib.suppress(MlflowException):  # another process was first
                client.delete_experiment_tag(experiment.experiment_id, tag)
