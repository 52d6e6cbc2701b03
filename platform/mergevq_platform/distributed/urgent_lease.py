"""The lease of an urgent job: what it needs, who on the cluster offers to yield, and who is asked to.

One actor a job, which Ray ends with the job's driver. Clocks are compared within this process alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

NAMESPACE = "mergevq-urgent"  # of the leases' names
GATHER_SECONDS = 1.5  # for which offers come in before one is taken
MORE_SECONDS = 60.0  # of waiting after which one more is asked: slots may not fit a node, or go to others
OFFER_SECONDS = 10.0  # for which an offer stands that is not made again
LEASE_SECONDS = 60.0  # without a beat of the job, after which the lease counts for nothing
START_SECONDS = 600.0  # in which the job must begin; then what yielded goes on


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Work that holds resources of the cluster, and whether it yields them at its next step boundary."""

    name: str  # of the run
    amounts: Mapping[str, float]  # by Ray's names
    began: float  # Unix time
    yields: bool = True


class LeaseReply(NamedTuple):
    """The answer to one that works on the cluster."""

    asked: bool  # it is to yield now
    waiting: bool  # the job has not begun: nothing new should start
    active: bool  # what has yielded stays away


class LeaseNews(NamedTuple):
    """The answer to the urgent job: names of runs, in the order of events."""

    asked: tuple[str, ...]
    yielded: tuple[str, ...]
    unyielding: tuple[str, ...]  # those that hold resources and do not yield
    lacking: bool  # what is free and what is asked do not suffice
    given_up: bool


@dataclass
class UrgentLease:
    """The state of a lease. `needs` and `free` are amounts by Ray's names: of all workers, and of the cluster as it began."""

    needs: Mapping[str, float]
    free: Mapping[str, float]
    clock: Callable[[], float] = time.monotonic
    begun: bool = False
    given_up: bool = False
    asked: list[Offer] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._created = self._beaten = self._asked_at = self.clock()
        self._offers: dict[str, tuple[float, Offer]] = {}

    def beat(self, begun: bool) -> LeaseNews:
        """The job's driver is alive, and has begun its first step or not."""
        self._beaten, self.begun = self.clock(), self.begun or begun
        self._choose()
        fresh = self._fresh()
        return LeaseNews(
            asked=tuple(offer.name for offer in self.asked),
            yielded=tuple(self.gone),
            unyielding=tuple(sorted(offer.name for offer in fresh if not offer.yields)),
            lacking=self._lacking(self.asked),
            given_up=self.given_up,
        )

    def offer(self, offer: Offer) -> LeaseReply:
        """One that works on the cluster says so, again and again; it is told whether to yield."""
        self._offers[offer.name] = (self.clock(), offer)
        self._choose()
        reply = self.look()
        asked = any(offer.name == other.name for other in self.asked)
        return reply._replace(asked=asked and reply.waiting and offer.name not in self.gone)

    def look(self) -> LeaseReply:
        """The state of the lease, for one that offers nothing."""
        now = self.clock()
        self.given_up = self.given_up or (not self.begun and now - self._created > START_SECONDS)
        active = not self.given_up and now - self._beaten < LEASE_SECONDS
        return LeaseReply(asked=False, waiting=active and not self.begun, active=active)

    def yielded(self, name: str) -> None:
        """One that was asked has written its checkpoint and lets go."""
        self._offers.pop(name, None)
        if name not in self.gone:
            self.gone.append(name)

    def _choose(self) -> None:
        # The youngest loses least: work that yields loses nothing but the start of its process, and an old one may be near its end.
        now = self.clock()
        if not self.look().waiting or now - self._created < GATHER_SECONDS:
            return
        asked = {offer.name for offer in self.asked}
        open_offers = [offer for offer in self._fresh() if offer.yields and offer.name not in asked]
        for offer in sorted(open_offers, key=lambda offer: (-offer.began, offer.name)):
            if not self._lacking(self.asked) and now - self._asked_at < MORE_SECONDS:
                return
            self.asked.append(offer)
            self._asked_at = now

    def _fresh(self) -> list[Offer]:
        now = self.clock()
        return [offer for at, offer in self._offers.values() if now - at < OFFER_SECONDS]

    def _lacking(self, asked: Iterable[Offer]) -> bool:
        there = Counter(self.free)
        for offer in asked:
            there.update(offer.amounts)
        return any(there[kind] < amount for kind, amount in self.needs.items())
