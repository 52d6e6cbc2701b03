"""What went wrong, in one line: out of Ray's wrappers, the error that a user can act on."""

from __future__ import annotations

from mergevq.errors import InputError


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
    """The error as one line: what broke and, for failures of ours, of what kind."""
    cause = root_cause(error)
    text = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, InputError):
        return text
    if isinstance(cause, OSError) and cause.strerror:
        named = f" ({cause.filename})" if cause.filename else ""
        return f"{cause.strerror.lower()}{named}"
    return f"{type(cause).__name__}: {text[:500]} (--debug shows the traceback)"
