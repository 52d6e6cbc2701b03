"""Of many workers' errors, the one line that says what to do."""

from __future__ import annotations

import pytest
import ray.exceptions
from ray.train import WorkerGroupError

from mergevq.errors import InputError
from mergevq_platform.distributed.failures import one_line, ran_out_of_memory, root_cause

PEER = RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:4711")
MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"
)
DEATH = ray.exceptions.ActorDiedError()
DEATH.error_msg = "The actor died because its node has died. Node Id: 0123. the actor's node was terminated"
WRONG = InputError("data.path has no labels: pack the data again")


@pytest.mark.parametrize(
    ("failures", "reason"),
    [([PEER, MEMORY], 1), ([PEER, DEATH], 1), ([DEATH, MEMORY, WRONG], 2), ([PEER, PEER], 0)],
)
def test_a_worker_that_only_lost_its_peer_is_not_the_reason(failures: list[Exception], reason: int) -> None:
    error = WorkerGroupError("several", dict(enumerate(failures)))
    assert root_cause(error) is failures[reason]


def test_a_lost_node_is_said_in_words() -> None:
    assert one_line(DEATH) == "a training worker was lost: its node has died"


def test_a_worker_that_died_without_a_word_may_have_lacked_memory() -> None:
    silent = ray.exceptions.ActorDiedError()
    silent.error_msg = (
        "The actor died unexpectedly because its worker process has died. Worker exit type: SYSTEM"
    )
    assert one_line(silent).startswith("a training worker was lost: its worker process has died (was it the")
    assert "lower micro_batch" in one_line(WorkerGroupError("several", {0: PEER, 1: silent}))


def test_a_lack_of_memory_is_said_with_what_to_do() -> None:
    assert ran_out_of_memory(MEMORY)
    assert "lower micro_batch" in one_line(WorkerGroupError("several", {0: PEER, 1: MEMORY}))
