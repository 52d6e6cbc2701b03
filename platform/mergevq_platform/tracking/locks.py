"""Locks between processes on one machine that end with their holder, however it ends."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path


class ExclusiveLock:
    """Hold the lock file at `path`, or raise `BlockingIOError` at once where another holder has it.

    Children that are forked (data workers) do not hold it: they may outlive a killed run, which must not keep
    anyone from resuming it.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.release()
            raise
        _held.add(self)

    def release(self) -> None:
        """Let go; once more does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


_held: weakref.WeakSet[ExclusiveLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    for lock in list(_held):
        lock.release()  # closes the child's copy only; the parent's lock stands


os.register_at_fork(after_in_child=_let_go_in_child)
