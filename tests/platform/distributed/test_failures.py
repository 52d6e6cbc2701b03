"""Of many workers' errors, the one line that says what to do."""

from __future__ import annotations

import pytest
import ray.exceptions
import torch
from ray.train import ControllerError, WorkerGroupError

from mergevq.errors import InputError
from mergevq_platform.distributed.failures import (
    again_if_lost_while_starting,
    one_line,
    ran_out_of_memory,
    root_cause,
)

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


FULL_NODE = ray.exceptions.OutOfMemoryError(
    "Task was killed due to the node running low on memory.\nMemory on the node (IP: 10.0.0.3, ID: 12ab) was 30.53GB used / "
    "32.00GB limit (0.954123), which exceeds the memory usage threshold of 0.950000. Ray killed this worker (ID: 77) because "
    "it was the most recently scheduled task"
)


def test_a_full_node_is_named_and_not_blamed_on_the_recipe_alone() -> None:
    text = one_line(WorkerGroupError("several", {0: PEER, 1: FULL_NODE}))
    assert text.startswith(
        "the node 10.0.0.3 ran out of memory (30.5 of 32.0 GB), and Ray ended a worker there: look for"
    )
    assert "\n" not in text
    assert one_line(ray.exceptions.OutOfMemoryError("words of another version")).startswith(
        "a node ran out of memory, and"
    )
    assert one_line(torch.OutOfMemoryError("CUDA out of memory")).startswith(
        "out of memory (CUDA out of memory): lower"
    )


@pytest.mark.parametrize(
    ("errors", "tries", "most"),
    [
        ([ControllerError(FULL_NODE), ControllerError(DEATH)], 3, 2),  # each is tried again
        (
            [ControllerError(FULL_NODE), ControllerError(FULL_NODE)],
            2,
            1,
        ),  # until the failures allowed are used up
        ([ControllerError(RuntimeError("a bug"))], 1, 2),
        ([WorkerGroupError("Ray Train has tried again itself", {0: DEATH})], 1, 2),
    ],
)
def test_a_group_that_was_lost_while_it_started_is_started_again(
    errors: list[Exception], tries: int, most: int
) -> None:
    left, told, tried = [*errors], list[str](), []

    def fit() -> str:
        tried.append(1)
        if left:
            raise left.pop(0)
        return "done"

    def again() -> str:
        return again_if_lost_while_starting(fit, failed=lambda: len(told), tell=told.append, most=most)

    if tries > len(errors):
        assert again() == "done"
        assert told == [one_line(error) for error in errors]
    else:
        with pytest.raises(type(errors[0])):
            again()
    assert len(tried) == tries
