"""Jobs that leave files: done once, resumed, refused where their plan or their files have changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergevq.errors import InputError
from mergevq.files import whole_file
from mergevq_platform.distributed.sharded_map import RECORDS, ShardRecords, plan_digest, resumed, resumed_map


def squares(jobs: list[int], known: dict[int, int], asked: list[int]) -> list[int]:
    def run(missing: list[int]) -> list[int]:
        asked.extend(missing)
        return [job**2 for job in missing]

    return resumed_map(
        jobs,
        run,
        finished=known.get,
        size=lambda job: job,
        title="squares",
        unit="ones",
        progress=False,
    )


def test_results_come_in_the_order_of_the_jobs_and_finished_ones_are_not_run() -> None:
    asked: list[int] = []
    assert squares([3, 1, 2], {1: 1}, asked) == [9, 1, 4]
    assert asked == [3, 2]
    asked.clear()
    assert squares([3, 1], {3: 9, 1: 1}, asked) == [9, 1]
    assert asked == []


def test_a_run_that_gives_too_few_results_is_our_failure() -> None:
    with pytest.raises(ValueError, match="shorter"):
        resumed_map(
            [1, 2],
            lambda missing: missing[:1],
            finished=lambda job: None,
            size=int,
            title="",
            unit="",
            progress=False,
        )
    with pytest.raises(ValueError, match="longer"):
        list(resumed([1], lambda missing: [1, 2], finished=lambda job: None))


def test_results_one_at_a_time_are_not_all_held_and_one_that_vanished_is_said() -> None:
    known, read = {1: 1, 3: 9}, []

    def finished(job: int) -> int | None:
        read.append(job)
        return known.get(job)

    told: list[list[int]] = []
    stream = resumed([1, 2, 3], lambda jobs: (job**2 for job in jobs), finished=finished, done=told.append)
    assert [next(stream), next(stream)] == [1, 4]
    assert read == [1, 2, 3, 1], "a finished result is read at its turn, after it was found to be there"
    assert told == [[1, 3], [2]]
    del known[3]
    with pytest.raises(InputError, match="result 2 of 3 was there and is gone: run the same again"):
        next(stream)


def test_a_record_counts_only_for_its_key_and_while_its_shard_is_whole(tmp_path: Path) -> None:
    records = ShardRecords(tmp_path)
    records.begin()
    (tmp_path / "a.parquet").write_bytes(b"12345")
    facts = {"shard": {"file": "a.parquet", "bytes": 5}, "views": 3}
    records.write("a.parquet", "key", facts)
    assert records.read("a.parquet", "key") == {"key": "key", **facts}
    assert records.read("a.parquet", "another key") is None
    assert records.read("b.parquet", "key") is None
    (tmp_path / "a.parquet").write_bytes(b"1234")
    assert records.read("a.parquet", "key") is None
    (tmp_path / "a.parquet").unlink()
    assert records.read("a.parquet", "key") is None
    records.write("empty.parquet", "key", {"shard": None})
    assert records.read("empty.parquet", "key") == {"key": "key", "shard": None}


def test_leftovers_of_killed_processes_and_larger_plans_are_removed(tmp_path: Path) -> None:
    records = ShardRecords(tmp_path)
    records.begin()
    for file in ("a.parquet", "b.parquet"):
        (tmp_path / file).write_bytes(b"1")
        records.write(file, "key", {"shard": {"file": file, "bytes": 1}})
    (tmp_path / ".a.parquet.99.tmp").write_bytes(b"half")
    records.remove_leftovers(["a.parquet"])
    records.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet"]
    assert not (tmp_path / RECORDS).exists()


def test_a_plans_digest_depends_on_every_key_and_their_order() -> None:
    assert plan_digest(["a", "b"]) == plan_digest(iter(["a", "b"]))
    assert len({plan_digest(keys) for keys in (["a", "b"], ["b", "a"], ["a"], ["a", "c"])}) == 4


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "below" / "a.txt"

    def cut_off() -> None:
        with whole_file(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        cut_off()
    assert list(target.parent.iterdir()) == []
    with whole_file(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]
