"""The manifest of a packed image set: its splits and shards, classes, checksums and source."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mergevq.errors import InputError
from mergevq.image_size import ImageSize, parse_size
from mergevq_platform.data.images.kinds import FormatCounts
from mergevq_platform.data.reading import Background

FORMAT = "mergevq-shards/1"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """A Parquet file of a split, relative to the data directory."""

    file: str
    rows: int
    bytes: int
    row_groups: tuple[int, ...]
    sha256: str | None = None


@dataclass(frozen=True)
class Skipped:
    """An image that was not packed, with the reason."""

    file: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """The shards of a split."""

    shards: tuple[Shard, ...]
    labelled: bool
    skipped: tuple[Skipped, ...] = ()
    unlabelled: int = 0  # images without a label, of a split that has labels
    kinds: FormatCounts | None = None  # none: packed before they were counted

    @property
    def rows(self) -> int:
        """Images of the split."""
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The manifest of a data directory."""

    splits: dict[str, Split]
    classes: tuple[str, ...]
    size: ImageSize | None  # pixels that images cover, a square's or (height, width); None: as they came
    source: dict[str, Any] = field(default_factory=dict)
    background: Background | None = (
        None  # of transparent pixels; None: packed before there was one, see `decode`
    )

    def to_json(self) -> str:
        """The manifest file's text."""
        splits = {
            name: {"rows": split.rows, **asdict(split), "kinds": split.kinds and split.kinds.to_tree()}
            for name, split in self.splits.items()
        }
        tree = {
            "format": FORMAT,
            "size": self.size,
            "classes": self.classes,
            "source": self.source,
            "background": self.background,
            "splits": splits,
        }
        return json.dumps(tree, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Raises `InputError` if the text is not a manifest of this format."""
        try:
            tree = json.loads(text)
            if tree["format"] != FORMAT:
                raise InputError(
                    f"{where} is of format '{tree['format']}', this version reads '{FORMAT}': pack the data again"
                )
            splits = {
                name: Split(
                    shards=tuple(shard_from(entry) for entry in split["shards"]),
                    labelled=split["labelled"],
                    skipped=tuple(Skipped(**entry) for entry in split["skipped"]),
                    unlabelled=split.get("unlabelled", 0),
                    kinds=FormatCounts.from_tree(split.get("kinds")),
                )
                for name, split in tree["splits"].items()
            }
            return cls(
                splits=splits,
                classes=tuple(tree["classes"]),
                size=_size(tree["size"]),
                source=tree["source"],
                background=tree.get("background"),
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{where} is damaged ({error}): copy the set again, or delete it and pack it again"
            ) from None


def _size(stored: Any) -> ImageSize | None:
    try:
        return None if stored is None else parse_size(stored)
    except InputError as error:
        raise TypeError(str(error)) from None


def shard_from(entry: dict[str, Any]) -> Shard:
    """A `Shard` of its JSON form."""
    return Shard(**{**entry, "row_groups": tuple(entry["row_groups"])})


def existing_manifest(directory: Path) -> Manifest | None:
    """The manifest of a local directory, if there is one."""
    path = directory / MANIFEST
    return Manifest.from_json(path.read_text(), str(path)) if path.is_file() else None


def refuse_foreign_files(directory: Path) -> None:
    """Raise `InputError` if images would be written among Parquet files that are not ours, or onto a file."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file: name a directory")
    if any(directory.glob("**/*.parquet")):
        raise InputError(
            f"{directory} already holds Parquet files without a manifest: name another directory, or delete it first"
        )
