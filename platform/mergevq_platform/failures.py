"""What went wrong, in one line: out of Ray's wrappers, the error that a user can act on."""

from __future__ import annotations

from mergevq.errors import InputError
from mergevq_platform.credentials import without_credentials

INTERRUPTED = 130  # exit status, as a shell counts a program that SIGINT ended


def root_cause(error: BaseException) -> BaseException:
    """The error that a user can act on: out of Ray's wrappers, the exception of the worker that failed first."""
    for attribute in ("worker_failures", "controller_failure", "cause"):
        inner = getattr(error, attribute, None)
        if isinstance(inner, dict) and inner:
            return root_cause(inner[min(inner)])
        if isinstance(inner, BaseException):
            return root_cause(inner)
    return error


def one_line(error: BaseException) -> str:
    """The error as one line, without credentials: what broke and, for failures of ours, of what kind."""
    cause = root_cause(error)
    text = without_credentials(" ".join(str(cause).split())) or type(cause).__name__
    if isinstance(cause, InputError):
        return text
    if ran_out_of_memory(cause):
        return (
            f"out of memory ({text[:160].rstrip('. ')}): lower micro_batch or evaluation.batch, or give the worker "
            "a machine with more"
        )
    if isinstance(cause, OSError) and cause.strerror:
        named = f" ({cause.filename})" if cause.filename else ""
        return f"{cause.strerror.lower()}{named}"
    return f"{type(cause).__name__}: {text[:500]} (--debug shows the traceback)"


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory, this machine's, or the share that Ray allows ran out."""
    # By name: torch's and Ray's own errors, without importing either here.
    named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
    return named or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
