"""The loop's host in one process, without Ray: a bare GPU machine, a notebook, a test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mergevq_platform.storage import checkpoints


@dataclass
class LocalHost:
    """Keeps checkpoints in `directory`, metrics in `history` and speed and memory in `system`; resumes from the newest checkpoint there."""

    directory: Path
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    system: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    status: dict[str, float] = field(default_factory=dict)
    stop_at: int | None = None  # ask to stop after this many more polls

    def latest(self) -> Path | None:
        """The newest whole checkpoint in the directory, resume.pt checked."""
        if not checkpoints.listed(str(self.directory)):
            return None
        with checkpoints.newest(
            str(self.directory), say=self.warn, files=checkpoints.RESUME
        ) as found:  # local: it stays where it is
            return found

    def record(self, step: int, values: dict[str, float]) -> None:
        """Append to the history, or to the measurements of the machine."""
        of_machine = all(name.startswith("system/") for name in values)
        (self.system if of_machine else self.history).append((step, values))

    def progress(self, status: dict[str, float]) -> None:
        """Keep the latest."""
        self.status = status

    def warn(self, message: str) -> None:
        """Keep the message."""
        self.warnings.append(message)

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Write beside and rename, so that a checkpoint is whole or absent."""
        target = self.directory / checkpoints.directory_name(step)
        temporary = self.directory / f".{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary)
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)

    def stop_requested(self) -> bool:
        """True once `stop_at` polls have gone by."""
        if self.stop_at is None:
            return False
        self.stop_at -= 1
        return self.stop_at <= 0

    def losing_node(self) -> bool:
        """False: one process has no other node."""
        return False

    def at(self, step: int, doing: str) -> None:
        """Does nothing: one process has no monitor."""
