"""Errors in one line: the one that a user can act on, out of Ray's wrappers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from mergevq.errors import InputError
from mergevq_platform.storage.credentials import without_credentials

T = TypeVar("T")

INTERRUPTED = 130  # exit status, as a shell counts a program that SIGINT ended

# The errors of a worker whose peer is gone: true, but never the reason.
_CONSEQUENCES = ("Connection closed by peer", "Connection reset by peer", "NCCL", "gloo")


def root_cause(error: BaseException) -> BaseException:
    """The error that a user can act on: out of Ray's wrappers, and of several workers' the one that explains the others."""
    for attribute in ("worker_failures", "controller_failure", "health_check_failure", "cause"):
        inner = getattr(error, attribute, None)
        if isinstance(inner, dict) and inner:
            return min((root_cause(inner[rank]) for rank in sorted(inner)), key=_remoteness)
        if isinstance(inner, BaseException):
            return root_cause(inner)
    return error


def one_line(error: BaseException) -> str:
    """The error as one line, without credentials: what broke and, for failures of ours, of what kind."""
    cause = root_cause(error)
    text = without_credentials(" ".join(str(cause).split())) or type(cause).__name__
    if isinstance(cause, InputError):
        return text
    if node_ran_out_of_memory(cause):
        return _node_memory(text)
    if ran_out_of_memory(cause):
        return (
            f"out of memory ({text[:160].rstrip('. ')}): lower micro_batch or evaluation.batch, or give the worker "
            "a machine with more"
        )
    if lost := _loss(cause):
        # A system short of memory ends a process from outside, and Ray cannot tell why it went.
        unexplained = " (was it the machine's memory? its kernel log says so; then lower micro_batch or evaluation.batch)"
        return f"a training worker was lost: {lost}{unexplained if 'worker process' in lost else ''}"
    if isinstance(cause, OSError) and cause.strerror:
        named = f" ({cause.filename})" if cause.filename else ""
        return f"{cause.strerror.lower()}{named}"
    return f"{type(cause).__name__}: {text[:500]} (--debug shows the traceback)"


def _remoteness(error: BaseException) -> int:
    if isinstance(error, InputError):
        return 0
    if ran_out_of_memory(error):
        return 1
    return 3 if any(sign in str(error) for sign in _CONSEQUENCES) and not _loss(error) else 2


def _loss(error: BaseException) -> str | None:
    # By name: Ray's errors, without importing it here. Their text is a paragraph with one telling clause.
    if not any(kind.__name__ == "RayActorError" for kind in type(error).__mro__):
        return None
    found = re.search(r"because (its .+?)(?:\.|$)", " ".join(str(error).split()))
    return found[1] if found else "its process or its node has died"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory, a process's, or that of a node as Ray watches it ran out."""
    # By name: torch's and Ray's own errors, without importing either here.
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def node_ran_out_of_memory(error: BaseException) -> bool:
    """Whether Ray's memory monitor ended the process: its node was full, whoever filled it."""
    return type(error).__name__ == "OutOfMemoryError" and type(error).__module__.startswith("ray.")


def _node_memory(text: str) -> str:
    # Ray's text is pages long: which node, how full it was, then every process there.
    node = re.search(r"\(IP: ([^,)\s]+)", text)
    full = re.search(r"was ([\d.]+) ?GB(?: used)? / ([\d.]+) ?GB", text)
    where = f"the node {node[1]}" if node else "a node"
    what = f" ({float(full[1]):.1f} of {float(full[2]):.1f} GB)" if full else ""
    return (
        f"{where} ran out of memory{what}, and Ray ended a worker there: look for other processes on it; if this run "
        "fills it alone, lower micro_batch or evaluation.batch, or give the worker a machine with more"
    )


def again_if_lost_while_starting(
    fit: Callable[[], T], *, failed: Callable[[], int], tell: Callable[[str], None], most: int
) -> T:
    """fit(), and again where Ray Train gave up because a worker group lost a process before its first step.

    Ray Train's controller restarts groups that fail at work, but takes what befalls one between its start and its first step
    for a fault of its own. `failed` counts the failures of workers so far, of which `most` are allowed; `tell` adds one.
    """
    while True:
        try:
            return fit()
        except Exception as error:
            cause = getattr(error, "controller_failure", None)
            lost = isinstance(cause, BaseException) and (node_ran_out_of_memory(cause) or _loss(cause))
            if not lost or failed() >= most:
                raise
            tell(one_line(error))
