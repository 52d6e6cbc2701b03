"""The lease of an urgent job: who is asked to yield, when, and that nobody waits for a job that is gone. No cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from mergevq_platform.distributed.urgency import PATIENCE_SECONDS, told
from mergevq_platform.distributed.urgent_lease import (
    GATHER_SECONDS,
    LEASE_SECONDS,
    MORE_SECONDS,
    OFFER_SECONDS,
    START_SECONDS,
    LeaseNews,
    LeaseReply,
    Offer,
    UrgentLease,
)
from mergevq_platform.distributed.yielding import Yielder, job_of


@dataclass
class LeaseWithClock:
    """A lease of so many CPUs, of which some are free, by a clock that the test turns; its job beats."""

    needs: float
    free: float = 0.0
    now: float = 0.0
    lease: UrgentLease = field(init=False)

    def __post_init__(self) -> None:
        self.lease = UrgentLease({"CPU": self.needs}, {"CPU": self.free}, clock=lambda: self.now)

    def offers(self, *offers: Offer, begun: bool = False) -> list[str]:
        """Everyone offers once, then once more; the names of those that are told to yield."""
        for offer in offers:
            self.lease.offer(offer)
        self.lease.beat(begun)
        return [offer.name for offer in offers if self.lease.offer(offer).asked]


def trial(number: int, cpus: float = 1.0, *, yields: bool = True) -> Offer:
    """A trial; those of larger numbers began later."""
    return Offer(name=f"trial-{number}", amounts={"CPU": cpus}, began=float(number), yields=yields)


def test_the_youngest_yields_and_no_more_than_are_needed() -> None:
    urgent = LeaseWithClock(needs=2.0, free=1.0)
    trials = [trial(0), trial(2), trial(1)]
    assert urgent.offers(*trials) == []  # others may still offer
    urgent.now = GATHER_SECONDS
    assert urgent.offers(*trials) == ["trial-2"]
    urgent.lease.yielded("trial-2")
    assert urgent.offers(*trials) == []


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=8),
    st.integers(1, 16),
    st.integers(0, 4),
)
def test_what_is_asked_suffices_where_there_is_enough_and_its_last_one_is_needed(
    cpus: list[int], needs: int, free: int
) -> None:
    urgent = LeaseWithClock(needs=float(needs), free=float(free))
    trials = [trial(number, float(count)) for number, count in enumerate(cpus)]
    urgent.offers(*trials)
    urgent.now = GATHER_SECONDS
    asked = urgent.offers(*trials)
    got = [offer.amounts["CPU"] for offer in trials if offer.name in asked]
    assert free + sum(got) >= min(needs, free + sum(cpus))
    if got:  # trials are asked from the youngest on, so the oldest of them was asked last
        assert free + sum(got[1:]) < needs


def test_who_has_yielded_is_not_asked_again_by_the_same_job() -> None:
    urgent = LeaseWithClock(needs=1.0)
    urgent.offers(trial(0))
    urgent.now = GATHER_SECONDS
    assert urgent.offers(trial(0)) == ["trial-0"]
    urgent.lease.yielded("trial-0")
    urgent.now += 2 * MORE_SECONDS  # it went on, as nobody else had anything to give
    assert urgent.offers(trial(0)) == []
    assert urgent.lease.beat(False).yielded == ("trial-0",)


def test_another_is_asked_after_a_while_where_the_job_still_waits() -> None:
    urgent = LeaseWithClock(needs=1.0)
    trials = [trial(0), trial(1)]
    urgent.offers(*trials)
    urgent.now = GATHER_SECONDS
    assert urgent.offers(*trials) == ["trial-1"]
    urgent.now += MORE_SECONDS
    assert urgent.offers(*trials) == ["trial-0", "trial-1"]


def test_nobody_is_asked_once_the_job_has_begun_and_what_has_yielded_stays_away() -> None:
    urgent = LeaseWithClock(needs=1.0)
    urgent.offers(trial(0), trial(1))
    urgent.now = GATHER_SECONDS
    assert urgent.offers(trial(0), trial(1), begun=True) == []
    reply = urgent.lease.look()
    assert (reply.waiting, reply.active) == (False, True)


def test_work_that_does_not_yield_is_named_and_never_asked() -> None:
    urgent = LeaseWithClock(needs=1.0)
    urgent.offers(trial(0, yields=False))
    urgent.now = GATHER_SECONDS
    assert urgent.offers(trial(0, yields=False)) == []
    assert urgent.lease.beat(False).unyielding == ("trial-0",)
    urgent.now += OFFER_SECONDS + 1  # it has ended
    assert urgent.lease.beat(False).unyielding == ()


def test_a_job_that_falls_silent_loses_its_lease() -> None:
    urgent = LeaseWithClock(needs=1.0)
    urgent.lease.beat(True)
    urgent.now = LEASE_SECONDS - 1
    assert urgent.lease.look().active
    urgent.now = LEASE_SECONDS
    assert not urgent.lease.look().active


def test_a_job_that_never_begins_gives_the_slots_back_for_good() -> None:
    urgent = LeaseWithClock(needs=1.0)
    while urgent.now <= START_SECONDS:
        assert urgent.lease.look().waiting
        urgent.lease.beat(False)
        urgent.now += LEASE_SECONDS / 2
    assert urgent.lease.beat(False).given_up
    assert not urgent.lease.look().active
    urgent.lease.beat(True)
    assert not urgent.lease.look().active


def test_the_job_says_who_yields_or_for_whom_it_waits() -> None:
    nobody = LeaseNews(asked=(), yielded=(), unyielding=("other",), lacking=True, given_up=False)
    soon, late = PATIENCE_SECONDS - 1, PATIENCE_SECONDS + 1
    assert list(told(nobody, begun=False, waited_seconds=soon)) == []
    waits = "nothing here yields: this job waits for other"
    assert list(told(nobody, begun=False, waited_seconds=late)) == [waits]
    assert list(told(nobody, begun=True, waited_seconds=late)) == []
    one = nobody._replace(asked=("trial",), yielded=("trial",))
    assert list(told(one, begun=False, waited_seconds=late)) == [
        "trial is asked to yield",
        "trial has yielded, with a checkpoint",
        "too little here yields: this job waits for other",
    ]
    lost = one._replace(given_up=True)
    assert "what yielded goes on" in list(told(lost, begun=False, waited_seconds=late))[-1]


def test_a_lease_bears_the_name_of_its_job() -> None:
    assert job_of("try#2-urgent#0a1b2c") == "try#2-urgent"


def test_who_has_yielded_stays_away_while_the_lease_counts_or_another_job_waits() -> None:
    yielder = Yielder()
    begun, waits, over = (
        LeaseReply(False, False, True),
        LeaseReply(False, True, True),
        LeaseReply(False, False, False),
    )
    yielder._replies = {"a#1": (0.0, begun)}
    assert yielder.holds("a#1")
    yielder._replies = {"b#1": (0.0, begun)}
    assert not yielder.holds("a#1"), "its job has ended, and the other has what it needs"
    yielder._replies = {"b#1": (0.0, waits)}
    assert yielder.holds("a#1")
    yielder._replies = {"a#1": (0.0, over)}
    assert not yielder.holds("a#1")
