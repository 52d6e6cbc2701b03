"""Processes of this test session alone: another session's cluster may run on the same machine."""

from __future__ import annotations

import contextlib

import psutil


def descendants(*words: str) -> list[psutil.Process]:
    """Processes below this one whose command line holds one of `words`, oldest first."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            if any(word in " ".join(process.cmdline()) for word in words):
                found.append(process)
    return sorted(found, key=lambda process: process.pid)
