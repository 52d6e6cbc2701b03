"""Records of a journal and their reading: run, records, values; safe beside the process that appends."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mergevq.errors import InputError

JOURNAL_NAME = "journal.jsonl"
CURVE_PREFIX = "curve/"  # step: kept tokens
KEPT_KEY = (
    f"{CURVE_PREFIX}kept_tokens"  # the step again, as a metric: an axis that bears the name of what it counts
)
SCALE_PREFIX = "cfg_curve/"  # step: 100 x guidance scale
SCALE_KEY = f"{SCALE_PREFIX}guidance_scale"  # likewise, and the scale itself
ALLOCATION_PREFIX = "allocation/"  # step: the wanted mean of kept tokens, rounded
ALLOCATION_KEY = f"{ALLOCATION_PREFIX}wanted_tokens"  # likewise, and the mean itself
TEST_PREFIX = "test/"  # of an evaluation without a curve; step: the checkpoint's
# What a paper prints has the prefixes above; the rest of an evaluation has these, which MLflow sorts behind them.
CURVE_BEST_PREFIX = (
    "curve_best/"  # the best over all kept counts; step: the kept tokens that it was reached with
)
CURVE_DETAILS_PREFIX = "curve_details/"
SCALE_BEST_PREFIX = "cfg_curve_best/"
SCALE_DETAILS_PREFIX = "cfg_curve_details/"
ALLOCATION_DETAILS_PREFIX = "allocation_details/"
TEST_DETAILS_PREFIX = "test_details/"
# Keys that take each step once, in any order: their steps count something other than time.
_OF_CURVES = (
    *(CURVE_PREFIX, CURVE_BEST_PREFIX, CURVE_DETAILS_PREFIX),
    *(SCALE_PREFIX, SCALE_BEST_PREFIX, SCALE_DETAILS_PREFIX),
    *(ALLOCATION_PREFIX, ALLOCATION_DETAILS_PREFIX),
)

_FRECHET = re.compile(r"[rg]s?fi?d(_\w+)?")

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]

YIELDED_TAG = "mergevq.yielded"  # after which step, and to which urgent job; ends with `WENT_ON` from when the run goes on
WENT_ON = "; went on"


def new_uid() -> str:
    """A fresh identity for a run; it, and not MLflow's id, is what finds the run again on any server."""
    return uuid.uuid4().hex


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """The identity of a run, before any server knows it.

    `parent` and `evaluates` are uids of other runs: the sweep that this trial belongs to, and the run whose
    checkpoint this run measures.
    """

    uid: str = field(default_factory=new_uid)
    name: str
    experiment: str
    kind: str = "training"
    parent: str | None = None
    evaluates: str | None = None
    user: str | None = None
    created_ms: int = field(default_factory=lambda: now_ms())


@dataclass(frozen=True)
class JournalRecord:
    """One line of a journal; `end` is the byte offset just after it."""

    seq: int
    time_ms: int
    kind: str
    data: dict[str, Any]
    end: int


def read_journal(path: Path, offset: int = 0, seq: int = 0) -> Iterator[JournalRecord]:
    """The complete records of a journal from byte `offset`, where record number `seq` begins.

    Safe beside a process that is appending: a line still without its end is not read. Damage at the very end
    (a crash in mid-write) ends the reading; a wrong line before good ones raises `InputError`.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                raw = json.loads(line)
                record = JournalRecord(raw["seq"], raw["time_ms"], raw["kind"], raw["data"], offset)
            except (ValueError, KeyError, TypeError):
                record = None
            if record is None or record.seq != seq:
                if not file.read(1):
                    return
                raise InputError(
                    f"{path}: record {seq} is damaged (byte {offset - len(line)}); "
                    "restore the file, or cut it there to keep what stands before"
                )
            yield record
            seq += 1


def read_identity(path: Path) -> RunIdentity:
    """The run that the journal at `path` belongs to. Raises `InputError` when there is none."""
    try:
        first = next(read_journal(path), None)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; name the directory of a run") from None
    if first is None or first.kind != "run":
        raise InputError(f"{path}: holds no run")
    return RunIdentity(**first.data)


def read_metrics(path: Path, prefix: str = "") -> dict[str, dict[int, float]]:
    """All recorded values, as key -> step -> value, of the keys that start with `prefix`."""
    found: dict[str, dict[int, float]] = {}
    for record in read_journal(path):
        if record.kind == "metrics":
            for key, value in record.data["values"].items():
                if key.startswith(prefix):
                    found.setdefault(key, {})[record.data["step"]] = float(value)
    return found


def is_frechet(key: str) -> bool:
    """Whether a metric, by its key without prefix, is a Fréchet distance (`rfid`, `gsfd_random_v1` …), of which less is better."""
    return _FRECHET.fullmatch(key) is not None


def is_of_curve(key: str) -> bool:
    """Whether the steps of a metric are kept tokens or guidance scales, which take any order."""
    return key.startswith(_OF_CURVES)


def now_ms() -> int:
    """Wall time in milliseconds, MLflow's unit."""
    return time.time_ns() // 1_000_000
