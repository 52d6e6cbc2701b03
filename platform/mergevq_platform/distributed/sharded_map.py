"""Jobs of which each leaves a file, done once: on any number of workers, and resumed where they were interrupted.

A set of shards is planned before anything is written. Every shard's job has a digest of all that decides its content; a
finished shard leaves a record with that digest beside the set, and whoever runs the same plan again keeps those shards.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mergevq.errors import InputError
from mergevq.files import write_whole
from mergevq_platform.distributed.progress import counted

RECORDS = ".parts"  # the folder of the records, until the set is whole

Job = TypeVar("Job")
Result = TypeVar("Result")


def resumed_map(
    jobs: Sequence[Job],
    run: Callable[[list[Job]], Iterable[Result]],
    *,
    finished: Callable[[Job], Result | None],
    size: Callable[[Job], int],
    title: str,
    unit: str,
    progress: bool = True,
) -> list[Result]:
    """The results of all jobs, in their order. A job of which `finished` gives the result is not run again.

    `run` gives the results of the others in their order, as `ordered_map.answers` does; it is not called for none. Progress
    counts `unit`s, of which a job has `size`.
    """
    known = [finished(job) for job in jobs]
    sizes = [size(job) for job in jobs]
    with counted(title, unit, sum(sizes), shown=progress) as advance:
        results = resumed(
            range(len(jobs)),
            lambda missing: run([jobs[number] for number in missing]),
            finished=known.__getitem__,
            done=lambda numbers: advance(sum(sizes[number] for number in numbers)),
        )
        return list(results)


def resumed(
    jobs: Sequence[Job],
    run: Callable[[list[Job]], Iterable[Result]],
    *,
    finished: Callable[[Job], Result | None],
    done: Callable[[list[Job]], object] = lambda jobs: None,
) -> Iterator[Result]:
    """As `resumed_map`, one result at a time: those that are finished are asked for again when it is their turn.

    `done` is told first of the finished jobs, then of each that was run. Raises `InputError` where a finished result is gone
    when it is its turn.
    """
    missing = {number for number, job in enumerate(jobs) if finished(job) is None}
    done([job for number, job in enumerate(jobs) if number not in missing])
    wanted = [jobs[number] for number in sorted(missing)]
    made = zip(wanted, run(wanted) if wanted else (), strict=True)
    for number, job in enumerate(jobs):
        if number in missing:
            _, result = next(made)
            done([job])
            yield result
        elif (found := finished(job)) is not None:
            yield found
        else:
            raise InputError(f"result {number} of {len(jobs)} was there and is gone: run the same again")
    next(made, None)  # to its end, where the lengths are compared


@dataclass(frozen=True)
class ShardRecords:
    """Records of the whole shards of an unfinished set, as JSON files beside them."""

    directory: Path

    @property
    def folder(self) -> Path:
        """The folder of the records."""
        return self.directory / RECORDS

    def begin(self) -> None:
        """Make the folder; a set with records is unfinished."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self, file: str, key: str, facts: Mapping[str, Any]) -> None:
        """Say that a shard is whole; `key` is the digest of its job.

        `facts["shard"]` are its `file` and `bytes`, among others; none where it has no rows.
        """
        write_whole(self._path(file), json.dumps({"key": key, **facts}))

    def read(self, file: str, key: str) -> dict[str, Any] | None:
        """The facts of a shard that is of the same job and lies there whole."""
        try:
            tree: dict[str, Any] = json.loads(self._path(file).read_text())
        except (FileNotFoundError, ValueError):
            return None
        if tree["key"] != key:
            return None
        if shard := tree["shard"]:
            path = self.directory / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                return None
        return tree

    def remove_leftovers(self, planned: Iterable[str]) -> None:
        """Delete half-written files of killed processes, and shards of an earlier plan that had more of them."""
        for path in self.directory.glob(".*.parquet.*.tmp"):
            path.unlink(missing_ok=True)
        wanted = set(planned)
        for path in self.folder.glob("*.json"):
            if path.stem not in wanted:
                (self.directory / path.stem).unlink(missing_ok=True)

    def end(self) -> None:
        """Delete the records: the set's manifest says everything now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, file: str) -> Path:
        return self.folder / f"{file}.json"


def plan_digest(keys: Iterable[str]) -> str:
    """Digest of a plan, from the digests of its jobs; it identifies the set that is made of the plan."""
    return hashlib.sha256("".join(keys).encode()).hexdigest()
