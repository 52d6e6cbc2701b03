"""Work that yields to urgent jobs: it looks at their leases from a thread of its own, so that a step costs nothing."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from mergevq_platform.distributed.urgent_lease import LEASE_SECONDS, NAMESPACE, LeaseReply, Offer

POLL_SECONDS = 0.5
ANSWER_SECONDS = 5.0
NICENESS = 10  # a tenth of the time of a process that wants the same CPU


class Yielder:
    """The leases of urgent jobs as one that works on the cluster sees them; a context manager.

    `offer` is what it holds and would yield; None only looks, and so does one that is `away`. What fails is a lease that is
    not there: no work waits for it.
    """

    def __init__(self, offer: Offer | None = None, *, poll_seconds: float = POLL_SECONDS) -> None:
        self.offer, self.away = offer, False
        self._poll_seconds = poll_seconds
        self._replies: dict[str, tuple[float, LeaseReply]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mergevq-yielder", daemon=True)

    @property
    def asked_by(self) -> str | None:
        """The lease that asks it to yield now."""
        return next((name for name, (_, reply) in sorted(self._replies.items()) if reply.asked), None)

    @property
    def waiting(self) -> bool:
        """Whether an urgent job waits for its slots: nothing new should start."""
        return any(reply.waiting for _, reply in self._replies.values())

    @property
    def active(self) -> bool:
        """Whether there is any urgent job."""
        return any(reply.active for _, reply in self._replies.values())

    def holds(self, lease: str) -> bool:
        """Whether what has yielded to this lease must stay away: for as long as it counts, or another job waits for slots."""
        _, reply = self._replies.get(lease, (0.0, None))
        return self.waiting or (reply is not None and reply.active)

    def gave(self, lease: str) -> None:
        """Tell the lease that this work has yielded, and look only from now on."""
        assert self.offer is not None
        self.away = True
        self._call(lease, "yielded", self.offer.name)

    def back(self) -> None:
        """Offer again."""
        self.away = False

    def __enter__(self) -> Yielder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(ANSWER_SECONDS)

    def _run(self) -> None:
        while True:
            self._look()
            if self._ended.wait(self._poll_seconds):
                return

    def _look(self) -> None:
        replies: dict[str, tuple[float, LeaseReply]] = {}
        for lease in leases():
            offer = None if self.away else self.offer
            reply = self._call(lease, "look") if offer is None else self._call(lease, "offer", offer)
            if reply is not None:
                replies[lease] = (time.monotonic(), reply)
            # One that does not answer for a moment, on a busy node, still counts.
            elif lease in self._replies and time.monotonic() - self._replies[lease][0] < LEASE_SECONDS:
                replies[lease] = self._replies[lease]
        self._replies = replies

    def _call(self, lease: str, method: str, *arguments: Any) -> Any:
        try:
            actor = ray.get_actor(lease, namespace=NAMESPACE)
            return ray.get(getattr(actor, method).remote(*arguments), timeout=ANSWER_SECONDS)
        except (GetTimeoutError, RayError, ValueError, RuntimeError, OSError):
            return None


def give_way_on_cpus() -> None:
    """Let this thread, and those that it starts, compute behind whatever else the node's Ray runs, as far as the system allows it.

    A cluster's CPUs are counted, not kept apart: an urgent job that starts runs more processes than it holds CPUs. Linux keeps the
    priority by thread, and Ray starts all workers of a node in one session, within which it compares them.
    """
    with suppress(OSError):
        os.nice(NICENESS)


def leases() -> list[str]:
    """The leases on the cluster; none where it does not answer."""
    try:
        named = ray.util.list_named_actors(all_namespaces=True)
    except (RayError, RuntimeError, OSError):
        return []
    return sorted(entry["name"] for entry in named if entry["namespace"] == NAMESPACE)


def job_of(lease: str) -> str:
    """The name of a lease's job."""
    return lease.rpartition("#")[0]
