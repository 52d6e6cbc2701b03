"""A sweep that yields to urgent jobs: trials that have yielded are paused, and nothing new starts in their place.

Ray Tune pauses trials for its schedulers, but gives the place of a paused trial to the next one at once, and asks Ray for more
places than there are. Here the process of a trial that has yielded ends, and requests are held back while an urgent job waits.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from ray.air.execution import ResourceRequest
from ray.air.execution.resources.placement_group import PlacementGroupResourceManager
from ray.tune.execution.tune_controller import TrialRunnerWrapper, TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from mergevq_platform.distributed.yielding import Yielder

IDLE_SECONDS = (
    0.2  # of a turn in which all have yielded: Tune, which then waits for nothing, would ask again at once
)
YIELDED = "yielded"  # the key of a report, whose value is the lease of the urgent job

_watches: dict[str, Yielder] = {}  # by sweep: Tune pickles its schedulers, a thread cannot be pickled


@contextmanager
def watching(sweep: str) -> Iterator[None]:
    """Look at the leases of urgent jobs for the sweep's scheduler."""
    with Yielder() as watch:
        _watches[sweep] = watch
        try:
            yield
        finally:
            del _watches[sweep]


class HeldPlacementGroups(PlacementGroupResourceManager):
    """Tune's placement groups, of which no more than `limit` are asked for at a time (None: as many as Tune likes)."""

    def __init__(self, update_interval_s: float = 0.1) -> None:
        super().__init__(update_interval_s)
        self.limit: int | None = None
        self.held: Counter[ResourceRequest] = Counter()

    @property
    def in_use(self) -> int:
        """The placement groups that hold resources."""
        return len(self._acquired_pgs) + sum(map(len, self._request_to_ready_pgs.values()))

    def request_resources(self, resource_request: ResourceRequest) -> None:
        """Ask Ray, or keep for later."""
        if self._room() > 0:
            super().request_resources(resource_request)
        else:
            self.held[resource_request] += 1

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        """Forget a request that is kept, else one that Ray has."""
        if self.held[resource_request]:
            self.held[resource_request] -= 1
        else:
            super().cancel_resource_request(resource_request)

    def hold(self, limit: int | None) -> None:
        """Set the limit; requests beyond it are taken back from Ray, and those for which there is room are made."""
        self.limit = limit
        for request, staged in list(self._request_to_staged_pgs.items()):
            while staged and self._room() < 0:
                super().cancel_resource_request(request)
                self.held[request] += 1
        for request in list(self.held):
            while self.held[request] and self._room() > 0:
                self.held[request] -= 1
                super().request_resources(request)

    def _room(self) -> float:
        if self.limit is None:
            return float("inf")
        return self.limit - self.in_use - sum(map(len, self._request_to_staged_pgs.values()))


class YieldingScheduler(TrialScheduler):
    """A scheduler of Tune's (None: first in, first out) whose trials yield to urgent jobs, and come back when those have ended."""

    def __init__(self, inner: TrialScheduler | None, sweep: str) -> None:
        super().__init__()
        self.inner = inner or FIFOScheduler()
        self.sweep = sweep
        self.leases: dict[str, str] = {}  # of trials that have yielded, by their ids
        self.returning: list[str] = []  # the ids of trials that have been away

    @property
    def metric(self) -> str | None:
        """The inner scheduler's."""
        return self.inner.metric

    @property
    def supports_buffered_results(self) -> bool:
        """The inner scheduler's."""
        return self.inner.supports_buffered_results

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: object) -> bool:
        """Pass on."""
        return self.inner.set_search_properties(metric, mode, **spec)

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Pass on."""
        self.inner.on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Pass on."""
        self.inner.on_trial_error(tune_controller, trial)

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, object]
    ) -> None:
        """Pass on."""
        self.inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: TuneController, trial: Trial) -> None:
        """Pass on."""
        self.inner.on_trial_remove(tune_controller, trial)

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, object]
    ) -> str:
        """Pass on; a trial that has yielded is paused, and the inner scheduler does not learn of it."""
        if (lease := result.get(YIELDED)) is None:
            self.leases.pop(trial.trial_id, None)  # it runs: a sweep that was killed may still have it here
            return self.inner.on_trial_result(tune_controller, trial, result)
        self.leases[trial.trial_id] = str(lease)
        # An actor that has not started, as far as Tune knows, is not kept for another trial: its place becomes free.
        controller = _unwrapped(tune_controller)
        controller._started_actors.discard(controller._trial_to_actor[trial])
        return self.PAUSE

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """The first trial that may come back, else the inner scheduler's choice; holds requests as the leases want it.

        Tune asks before everything else that it does in a turn.
        """
        controller = _unwrapped(tune_controller)
        watch = _watches[self.sweep]
        requests = controller._actor_manager._resource_manager
        if not isinstance(requests, HeldPlacementGroups):  # the first turn: nothing is requested yet
            requests = controller._actor_manager._resource_manager = HeldPlacementGroups()
        moved = _to_the_front(controller, self.returning)
        if requests.limit is not None:  # only now: whatever place comes free is the first one's in the queue
            requests.limit += moved
        paused = [trial for trial in controller.get_trials() if trial.status == Trial.PAUSED]
        away = {trial.trial_id: trial for trial in paused if trial.trial_id in self.leases}
        for trial in away.values():
            if not watch.holds(self.leases[trial.trial_id]):
                del self.leases[trial.trial_id]
                self.returning.append(trial.trial_id)
                return trial
        if watch.waiting:
            requests.hold(requests.in_use)
        elif requests.limit is not None:
            requests.hold(requests.limit if watch.active else None)
        if requests.limit == 0:
            time.sleep(IDLE_SECONDS)
        chosen = self.inner.choose_trial_to_run(tune_controller)
        return None if chosen is not None and chosen.trial_id in away else chosen

    def debug_string(self) -> str:
        """The inner scheduler's."""
        return self.inner.debug_string()

    def save(self, checkpoint_path: str) -> None:
        """Pass on."""
        self.inner.save(checkpoint_path)

    def restore(self, checkpoint_path: str) -> None:
        """Pass on."""
        self.inner.restore(checkpoint_path)


def _unwrapped(controller: TuneController) -> TuneController:
    # Schedulers get it in a wrapper that warns of what they should not need; only the controller itself can free a place.
    return controller._tune_controller if isinstance(controller, TrialRunnerWrapper) else controller


def _to_the_front(controller: TuneController, returning: list[str]) -> int:
    """Let trials that come back have the next places, before those that have not begun; returns their number."""
    moved = 0
    for trial in controller.get_trials() if returning else ():
        if trial.trial_id in returning and (actor := controller._trial_to_actor.get(trial)) is not None:
            queue = controller._actor_manager._resource_request_to_pending_actors[
                trial.placement_group_factory
            ]
            if actor in queue:
                queue.remove(actor)
                queue.insert(0, actor)
            returning.remove(trial.trial_id)
            moved += 1
    return moved
