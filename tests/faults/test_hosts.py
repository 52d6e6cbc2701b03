"""Two hosts with addresses of their own: a link that is cut, a host that is lost, a host that is slow. Root only."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from disturbance import Disturbed
from hosts import Hosts, why_not
from raynodes import Node, Nodes, kill, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

Start = Callable[..., Disturbed]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Host 0 for the head and the driver, 1 and 2 for workers."""
    if reason := why_not():
        pytest.skip(reason)
    with Hosts(3) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def cluster(hosts: Hosts) -> Iterator[Nodes]:
    with Nodes().start(address=hosts.address(0), prefix=hosts.prefix(0)) as cluster:
        yield cluster


@pytest.fixture
def nodes(cluster: Nodes, hosts: Hosts) -> Nodes:
    """The cluster with a living node on hosts 1 and 2."""
    cluster.nodes = [node for node in cluster.nodes if node.process.poll() is None]
    there = [node.address for node in cluster.nodes]
    if missing := [number for number in (1, 2) if hosts.address(number) not in there]:
        join(cluster, hosts, *missing)
    return cluster


def join(nodes: Nodes, hosts: Hosts, *numbers: int) -> None:
    nodes.add(*[(hosts.address(number), hosts.prefix(number)) for number in numbers])


def on(nodes: Nodes, hosts: Hosts, number: int) -> Node:
    return next(node for node in nodes.nodes if node.address == hosts.address(number))


def test_link_cut_for_a_moment(
    disturb: Start, nodes: Nodes, hosts: Hosts, expected: dict[str, Any], report: Any
) -> None:
    run = disturb("cut-short", prefix=hosts.prefix(0))
    run.reach()
    assert len(nodes.busy()) == 2, "one worker on each host"
    run.strike(lambda: hosts.plugged(2, False))
    time.sleep(4)
    hosts.plugged(2, True)
    run.finish()
    assert "failed" not in run.driver.output
    outcome = "training stood still and went on by itself, no restart"
    report("link cut for 4 s, two hosts", None, run.again(4), outcome, run.check(expected))


def test_link_cut_until_the_host_counts_as_lost(
    disturb: Start, nodes: Nodes, hosts: Hosts, expected: dict[str, Any], report: Any
) -> None:
    run = disturb("cut-long", prefix=hosts.prefix(0))
    run.reach()
    run.strike(lambda: hosts.plugged(2, False))
    try:
        wait_until(lambda: run.driver.said("the run waits for nodes"), 400, "the host is missed")
    finally:
        hosts.plugged(2, True)
    healed = time.monotonic() - run.struck_at
    lost = on(nodes, hosts, 2)
    lost.process.wait(300)  # told that it is counted as dead, its raylet ends
    nodes.nodes.remove(lost)
    join(nodes, hosts, 2)
    run.finish()
    seen = run.noticed("failed")
    outcome = f"said what it waits for after {healed:.0f} s; the cut-off raylet ended when the link was back; went on when it joined again"
    report("link cut until Ray gives the host up", seen, run.again(healed), outcome, run.check(expected))


def test_host_lost(disturb: Start, nodes: Nodes, hosts: Hosts, expected: dict[str, Any], report: Any) -> None:
    run = disturb("host-lost", prefix=hosts.prefix(0))
    run.reach()
    victim = on(nodes, hosts, 1)
    run.strike(victim.kill)
    nodes.nodes.remove(victim)
    join(nodes, hosts, 1)
    run.finish()
    seen = run.noticed("failed")
    report(
        "host SIGKILL, another joins",
        seen,
        run.again(seen),
        "restarted on the hosts there are",
        run.check(expected),
    )


def test_slow_host(disturb: Start, nodes: Nodes, hosts: Hosts, expected: dict[str, Any], report: Any) -> None:
    run = disturb("slow", prefix=hosts.prefix(0))
    run.reach()
    run.strike(lambda: None)
    far = hosts.slowed(2, "40ms")
    throttled = [] if far else on(nodes, hosts, 2).workers()  # this kernel has no netem queue
    try:
        while run.driver.process.poll() is None:
            kill(throttled, signal.SIGSTOP)
            time.sleep(0.2)
            kill(throttled, signal.SIGCONT)
            time.sleep(0.05)
        run.finish()
    finally:
        kill(throttled, signal.SIGCONT)
        hosts.slowed(2, None)
    assert "failed" not in run.driver.output
    fault = "a host 40 ms away" if far else "a host that stands still four fifths of the time"
    report(fault, None, None, "slower, no restart", run.check(expected))
