"""The manifest of a code set: its splits and shards, checksums, and the identity of the tokenizer and of the images."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergevq.errors import InputError
from mergevq_platform.data.parquet.location import Location
from mergevq_platform.data.parquet.manifest import MANIFEST
from mergevq_platform.storage.tokenizer_ref import TokenizerRef

FAMILY = "mergevq-codes/"
FORMAT = "mergevq-codes/1"  # every row group at one kept count
RAGGED = "mergevq-codes/2"  # every image with its own


@dataclass(frozen=True)
class Group:
    """A row group of a shard."""

    rows: int
    keep: int | None  # None: each row has its own count


@dataclass(frozen=True)
class CodeShard:
    """A Parquet file of a split, relative to the code set's directory."""

    file: str
    bytes: int
    sha256: str
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, tree: dict[str, Any]) -> CodeShard:
        """A shard of its JSON form."""
        return cls(**{**tree, "groups": tuple(Group(**group) for group in tree["groups"])})


@dataclass(frozen=True)
class CountHistogram:
    """How many views keep how many tokens: the kept counts, ascending, with the views of all, of each class, and of none."""

    counts: tuple[int, ...]
    views: tuple[int, ...]
    of_class: tuple[tuple[int, ...], ...]
    without_class: tuple[int, ...]

    @classmethod
    def of(cls, tree: dict[str, Any]) -> CountHistogram:
        """A histogram of its JSON form."""
        of_class = tuple(map(tuple, tree["of_class"]))
        return cls(tuple(tree["counts"]), tuple(tree["views"]), of_class, tuple(tree["without_class"]))

    @classmethod
    def counted(cls, found: Counter[tuple[int, int]], counts: Sequence[int], classes: int) -> CountHistogram:
        """The histogram of views by (label, kept count), -1 being no label."""

        def row(label: int) -> tuple[int, ...]:
            return tuple(found[label, count] for count in counts)

        of_class, without = tuple(row(label) for label in range(classes)), row(-1)
        views = tuple(map(sum, zip(*of_class, without, strict=True)))
        return cls(tuple(counts), views, of_class, without)

    @property
    def mean(self) -> float:
        """The mean kept count of all views."""
        total = sum(count * views for count, views in zip(self.counts, self.views, strict=True))
        return total / max(1, sum(self.views))


@dataclass(frozen=True, kw_only=True)
class CodeAllocation:
    """How every image of a code set got its kept count."""

    allocator: str  # as it is written on the command line
    budget: float  # the wanted mean count
    constant: float  # of the allocator, calibrated for it
    calibration: dict[
        str, Any
    ]  # allocator, menu, and hashes of weights and images: see `mergevq.allocation.Calibration`
    calibration_sha256: str
    histograms: dict[str, CountHistogram]  # by split

    @classmethod
    def of(cls, tree: dict[str, Any]) -> CodeAllocation:
        """An allocation of its JSON form."""
        histograms = {name: CountHistogram.of(found) for name, found in tree["histograms"].items()}
        return cls(**{**tree, "histograms": histograms})


@dataclass(frozen=True, kw_only=True)
class CodeManifest:
    """The manifest of a code set. `views`: of each split, images times crops; `plan`: how it was made; `allocation`: of a set
    whose images keep different counts."""

    tokenizer: TokenizerRef
    classes: tuple[str, ...]
    splits: dict[str, tuple[CodeShard, ...]]
    views: dict[str, int]
    keeps: tuple[int, ...]
    plan: dict[str, Any]
    skipped: tuple[str, ...] = field(default=())  # images that could not be decoded
    allocation: CodeAllocation | None = None

    def to_json(self) -> str:
        """The manifest file's text."""
        tree = asdict(self)
        if self.allocation is None:
            del tree["allocation"]  # the format of before there were others
        return json.dumps({"format": RAGGED if self.allocation else FORMAT, **tree}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> CodeManifest:
        """Raises `InputError` if the text is not a code set's manifest."""
        try:
            tree = json.loads(text)
            if (format := tree.pop("format")) not in (FORMAT, RAGGED):
                raise InputError(_refusal(format, where))
            allocation = tree.pop("allocation") if format == RAGGED else None
            return cls(
                tokenizer=TokenizerRef.of(tree.pop("tokenizer")),
                classes=tuple(tree.pop("classes")),
                splits={
                    name: tuple(map(CodeShard.of, shards)) for name, shards in tree.pop("splits").items()
                },
                keeps=tuple(tree.pop("keeps")),
                skipped=tuple(tree.pop("skipped")),
                allocation=allocation and CodeAllocation.of(allocation),
                **tree,
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where} is damaged ({error}): tokenize again") from None


def is_code_set(path: str | Path) -> bool:
    """Whether there is the manifest of a code set at a path or URI."""
    text = Location.of(path).text(MANIFEST)
    try:
        tree = json.loads(text or "{}")
    except ValueError:
        return False
    return isinstance(tree, dict) and str(tree.get("format")).startswith(FAMILY)


def _refusal(format: Any, where: str) -> str:
    if str(format).startswith(FAMILY):
        return f"{where} has format {format}, which this version does not know: update mergevq, or tokenize again"
    return f"{where} is no code set: make one with `mergevq tokenize TOKENIZER DIR`"


def read_manifest(path: str | Path, location: Location | None = None) -> CodeManifest:
    """The manifest of a code set. Raises `InputError` where there is none."""
    text = (location or Location.of(path)).text(MANIFEST)
    if text is None:
        raise InputError(
            f"no code set at {path}: make it with `mergevq tokenize TOKENIZER {path}` (the same command goes on with one that "
            "was interrupted)"
        )
    return CodeManifest.from_json(text, f"{path}/{MANIFEST}")
