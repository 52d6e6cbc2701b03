"""The journal of a run: an append-only file of JSON lines on local disk, and the truth about the run.

MLflow holds a copy that the writer delivers (`delivery.py`); whatever a server missed is still here. One line
is one record: sequence number, wall time in milliseconds, kind, data.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import posixpath
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mergevq.errors import InputError
from mergevq_platform.tracking.locks import ExclusiveLock
from mergevq_platform.tracking.records import (
    CURVE_PREFIX,
    JOURNAL_NAME,
    KEPT_KEY,
    SCALE_KEY,
    SCALE_PREFIX,
    TEST_DETAILS_PREFIX,
    TEST_PREFIX,
    RunIdentity,
    Status,
    is_of_curve,
    now_ms,
    read_identity,
    read_journal,
)

__all__ = ["JOURNAL_NAME", "Journal", "JournalHeld", "RunIdentity", "Status", "read_identity", "read_journal"]

# MLflow's own rule for names, checked here so that no record can be refused later.
_KEY = re.compile(r"[/\w.\- :]{1,250}")


class JournalHeld(InputError):
    """Another process is writing this journal."""


_FIXES = {
    errno.ENOSPC: "the disk is full: free some space, then resume the run",
    errno.EDQUOT: "the disk quota is used up: free some space, then resume the run",
    errno.EROFS: "the file system is read-only: choose another directory",
    errno.EACCES: "no permission to write: choose another directory",
    errno.EPERM: "no permission to write: choose another directory",
    errno.ENOTDIR: "a file stands where a directory is needed: choose another directory",
    errno.EEXIST: "a file stands where a directory is needed: choose another directory",
}


class Journal:
    """Append records to the journal at `path`, created with `identity` when absent.

    Re-opening an existing journal drops a last line torn by a crash, and keeps the first value of every
    (metric, step): a loop that repeats steps after a restart from a checkpoint may report them again.
    One process at a time holds a journal; a second one, a wrong name, and a disk that cannot be written are
    `InputError`s.
    """

    def __init__(self, path: Path, identity: RunIdentity | None = None) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        self._params: dict[str, Any] = {}
        self._tags: dict[str, str] = {}
        self._last_step: dict[str, int] = {}
        self._curve_steps: dict[str, set[int]] = {}
        self._seq = 0
        self.status: Status | None = None
        with _explained(self.path):
            if identity is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            elif not self.path.is_file():
                raise InputError(f"{self.path}: no run is recorded there; name another run, or start one")
            self._hold = self._exclusive()
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._end = self._recover()
            if self._seq == 0:
                if identity is None:
                    raise InputError(f"{self.path}: no run is recorded there; name another run, or start one")
                self.identity = identity
                self._append("run", asdict(identity))
            elif identity is not None and identity.uid != self.identity.uid:
                raise InputError(
                    f"{self.path}: belongs to run '{self.identity.name}' ({self.identity.uid}); "
                    "choose another directory, or resume that run"
                )
        except BaseException:
            self.close()
            raise

    @property
    def run_dir(self) -> Path:
        """The directory of the run: the journal's own; artifacts are named relative to it."""
        return self.path.parent

    @property
    def evaluated(self) -> bool:
        """Whether this run carries the numbers of an evaluation already."""
        return bool(self._curve_steps) or any(
            key.startswith((TEST_PREFIX, TEST_DETAILS_PREFIX)) for key in self._last_step
        )

    def append_params(self, values: Mapping[str, Any]) -> None:
        """Record flat parameters.

        A parameter stands as first given, as in MLflow; another value later becomes the tag `changed.<key>`.
        """
        with self._lock:
            new, changed = {}, {}
            for key, value in values.items():
                _check_key(key, "parameter")
                text = value if isinstance(value, str) else json.dumps(value, default=str)
                if key not in self._params:
                    new[key] = text
                elif self._params[key] != text:
                    changed[f"changed.{key}"] = text
            if new:
                self._append("params", new)
            if changed:
                self.append_tags(changed)

    def append_tags(self, values: Mapping[str, str]) -> None:
        """Record tags; the last value of a tag stands."""
        with self._lock:
            for key in values:
                _check_key(key, "tag")
            new = {key: str(value) for key, value in values.items() if self._tags.get(key) != str(value)}
            if new:
                self._append("tags", new)

    def tag(self, key: str) -> str:
        """The value of a tag; "" if there is none."""
        return self._tags.get(key, "")

    def append_metrics(self, step: int, values: Mapping[str, float]) -> int:
        """Record `values` at `step`, and return how many were new.

        A key takes rising steps, each once; a key of a curve takes each step once, in any order.
        NaN and infinities are recorded as such.
        """
        step = int(step)
        with self._lock:
            new = {}
            for key, value in values.items():
                _check_key(key, "metric")
                if not self._known(key, step):
                    new[key] = _encode(float(value))
            if new:
                self._append("metrics", {"step": step, "values": new})
            return len(new)

    def append_axes(self) -> None:
        """Record the axis of each point of a curve that lacks it: runs of before had none."""
        with self._lock:
            for axis, prefix, unit in ((KEPT_KEY, CURVE_PREFIX, 1), (SCALE_KEY, SCALE_PREFIX, 100)):
                found = [steps for key, steps in self._curve_steps.items() if key.startswith(prefix)]
                for step in sorted(set().union(*found) - self._curve_steps.get(axis, set())):
                    self.append_metrics(step, {axis: step / unit})

    def append_artifact(self, file: Path, directory: str = "") -> None:
        """Record that `file` belongs to the run, under `directory` of its artifacts.

        A file outside the run's directory is first copied into it, so that a later delivery still finds it.
        """
        file = Path(file)
        if directory and not _is_plain(directory):
            raise InputError(f"artifact directory '{directory}': write a relative path such as 'curve'")
        if not file.is_file():
            raise InputError(f"artifact {file}: no such file")
        inside = file.resolve().is_relative_to(self.run_dir.resolve())
        with self._lock, _explained(self.path):
            if not inside:
                kept = self.run_dir / "artifacts" / directory / file.name
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, kept)
                file = kept
            relative = file.resolve().relative_to(self.run_dir.resolve()).as_posix()
            self._append("artifact", {"file": relative, "directory": directory})

    def append_dataset(self, *, name: str, digest: str, source: str, context: str = "training") -> None:
        """Record the data that the run reads: `digest` its fingerprint, `source` its location."""
        # 36 and 500: the widths of MLflow's columns.
        data = {"name": name[:500], "digest": digest[:36], "source": source, "context": context}
        with self._lock:
            self._append("dataset", data)

    def append_status(self, status: Status) -> None:
        """Record the status of the run, and sync everything recorded so far to the disk."""
        with self._lock:
            if status != self.status:
                self._append("status", {"status": status})
            with _explained(self.path):
                os.fsync(self._file)

    def close(self) -> None:
        """Let go of the journal; further appends fail."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                self._hold.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _exclusive(self) -> ExclusiveLock:
        try:
            return ExclusiveLock(self.path.with_suffix(".lock"))
        except BlockingIOError:
            raise JournalHeld(
                f"{self.path}: another process is writing this run; stop it, or start a run of another name"
            ) from None

    def _recover(self) -> int:
        end = 0
        for record in read_journal(self.path):
            self._index(record.kind, record.data)
            self._seq = record.seq + 1
            end = record.end
        if end < os.fstat(self._file).st_size:
            with _explained(self.path):
                os.ftruncate(self._file, end)
        return end

    def _append(self, kind: str, data: dict[str, Any]) -> None:
        if self._file < 0:
            raise ValueError(f"{self.path}: the journal is closed")
        line = {"seq": self._seq, "time_ms": now_ms(), "kind": kind, "data": data}
        text = (json.dumps(line, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n").encode()
        with _explained(self.path):
            written = 0
            try:
                while written < len(text):
                    written += os.write(self._file, text[written:])
            except OSError:
                os.ftruncate(self._file, self._end)  # half a line would swallow the next record
                raise
        self._end += len(text)
        self._seq += 1
        self._index(kind, data)

    def _index(self, kind: str, data: dict[str, Any]) -> None:
        match kind:
            case "run":
                self.identity = RunIdentity(**data)
            case "params":
                self._params.update(data)
            case "tags":
                self._tags.update(data)
            case "status":
                self.status = data["status"]
            case "metrics":
                for key in data["values"]:
                    if is_of_curve(key):
                        self._curve_steps.setdefault(key, set()).add(data["step"])
                    else:
                        self._last_step[key] = data["step"]

    def _known(self, key: str, step: int) -> bool:
        if is_of_curve(key):
            return step in self._curve_steps.get(key, ())
        return step <= self._last_step.get(key, -1)


def _encode(value: float) -> float | str:
    # JSON has no NaN and no infinities; as strings, float() reads them back.
    return value if math.isfinite(value) else str(value)


def _check_key(key: str, what: str) -> None:
    if not _KEY.fullmatch(key) or not _is_plain(key):
        raise InputError(
            f"{what} name '{key}': use letters, digits, '_', '-', '.', ' ', ':' and single '/', at most 250"
        )


def _is_plain(path: str) -> bool:
    return posixpath.normpath(path) == path and not path.startswith(("/", "..")) and path != "."


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FIXES:
            raise
        raise InputError(f"{path}: {_FIXES[error.errno]}") from error
