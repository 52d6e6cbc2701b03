"""An urgent job's side of its lease: it asks running work to yield, says who does, and gives the slots back at its end."""

from __future__ import annotations

import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from mergevq_platform.distributed.urgent_lease import GATHER_SECONDS, NAMESPACE, LeaseNews, UrgentLease

BEAT_SECONDS = 1.0
PATIENCE_SECONDS = GATHER_SECONDS + 13.0  # before a job says that no work yields


def _say(line: str) -> None:
    print(f"urgent: {line}", file=sys.stderr, flush=True)


class Urgency:
    """The lease of an urgent job for as long as the context lasts; `needs` is what all of its workers ask for.

    Where the process dies, Ray ends the lease; where it hangs, the lease runs out.
    """

    def __init__(self, job: str, needs: Mapping[str, float], *, say: Callable[[str], None] = _say) -> None:
        self.begun = False  # set by the job once its workers run
        self._say, self._said, self._began = say, set[str](), time.monotonic()
        self._actor: Any = (
            ray.remote(UrgentLease)
            .options(
                num_cpus=0,
                name=f"{job}#{secrets.token_hex(3)}",
                namespace=NAMESPACE,
                label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
            )
            .remote(needs=dict(needs), free=ray.available_resources())
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mergevq-urgency", daemon=True)

    def __enter__(self) -> Urgency:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        ray.kill(self._actor)
        self._thread.join(BEAT_SECONDS)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                news = ray.get(self._actor.beat.remote(self.begun))
            except RayError:  # it was ended: no work yields any more
                if not self._ended.is_set():
                    self._say("its lease is lost: what yielded goes on")
                return
            for line in told(news, begun=self.begun, waited_seconds=time.monotonic() - self._began):
                if line not in self._said:
                    self._said.add(line)
                    self._say(line)
            self._ended.wait(BEAT_SECONDS)


def told(news: LeaseNews, *, begun: bool, waited_seconds: float) -> Iterator[str]:
    """The lines about an urgent job, all that hold by now."""
    for name in news.asked:
        yield f"{name} is asked to yield"
    for name in news.yielded:
        yield f"{name} has yielded, with a checkpoint"
    if begun:
        return
    if news.given_up:
        yield "not begun in time: what yielded goes on, and this job waits as any other"
    elif news.lacking and waited_seconds > PATIENCE_SECONDS:
        whom = ", ".join(news.unyielding) or "work that is not ours or does not yield"
        little = "too little here yields" if news.asked else "nothing here yields"
        yield f"{little}: this job waits for {whom}"
