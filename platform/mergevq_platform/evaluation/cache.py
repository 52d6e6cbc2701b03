"""Results of evaluations on disk, so that nothing is measured twice and a killed evaluation goes on.

A *pass* is all jobs of one kind over one set of images. While it runs, each job's result is a file of its own; when it is done
they become one. A pass is named by all that its result depends on: weights, data, preprocessing, extractor, sampling.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from mergevq_platform.distributed.sharded_map import resumed
from mergevq_platform.evaluation.cache_files import load, save
from mergevq_platform.evaluation.results import merge
from mergevq_platform.tracking.locks import ExclusiveLock

FORMAT = 5  # of the files, and of what the numbers in them mean: raise it when either changes
LIMIT_BYTES = 20 * 1024**3  # of all files together; the longest unused go first
SUFFIX = ".safetensors"

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Cache:
    """The files of finished passes and of those under way, in one folder."""

    directory: Path
    limit_bytes: int = LIMIT_BYTES

    @classmethod
    def at(cls, home: Path) -> Cache:
        """The cache of a home directory."""
        return cls(home / "cache")

    def through(
        self, key: Mapping[str, Any], jobs: Sequence[Job], ask: Callable[[Sequence[Job]], Iterable[Result]]
    ) -> Result:
        """The merged result of the jobs that make up the pass `key`; only those without a result here are asked for."""
        text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
        name = f"{key['kind']}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"
        whole, parts = self.directory / f"{name}{SUFFIX}", self.directory / name
        if (known := load(whole)) is not None:
            os.utime(whole)
            return cast(Result, known)  # the key names the jobs
        parts.mkdir(parents=True, exist_ok=True)
        try:
            lock = ExclusiveLock(self.directory / f"{name}.lock")
        except BlockingIOError:  # another process measures the same: do not get in its way
            return merge(ask(jobs))
        try:
            merged = merge(self._parts(parts, jobs, ask))
            save(whole, merged)
            shutil.rmtree(parts)
            (self.directory / f"{name}.lock").unlink()
        finally:
            lock.release()
        self._trim(keep=whole)
        return merged

    def _parts(
        self, folder: Path, jobs: Sequence[Job], ask: Callable[[Sequence[Job]], Iterable[Result]]
    ) -> Iterator[Result]:
        def file(index: int) -> Path:
            return folder / f"{index:06d}{SUFFIX}"

        def run(missing: list[int]) -> Iterator[Result]:
            for index, result in zip(missing, ask([jobs[index] for index in missing]), strict=True):
                save(file(index), result)
                yield result

        return resumed(range(len(jobs)), run, finished=lambda index: cast("Result | None", load(file(index))))

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())

    def clear(self) -> int:
        """Delete all of it; returns the bytes freed."""
        size = self.bytes
        shutil.rmtree(self.directory, ignore_errors=True)
        return size

    def _trim(self, keep: Path) -> None:
        excess = self.bytes - self.limit_bytes
        # A folder is what a killed evaluation left; one that is being filled is the youngest of all.
        for entry in sorted(self.directory.iterdir(), key=lambda path: path.stat().st_mtime):
            if excess <= 0:
                return
            if entry == keep:
                continue
            if entry.is_dir():
                excess -= sum(path.stat().st_size for path in entry.iterdir())
                shutil.rmtree(entry)
            else:
                excess -= entry.stat().st_size
                entry.unlink()
