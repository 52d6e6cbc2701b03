"""Writing Parquet shards: Hugging Face's column layout, small row groups, atomic files, a manifest with checksums.

Layout: `image` struct<bytes: binary, path: string>, `label` int64 (-1: none). `datasets.load_dataset(directory)` reads
it as well: the schema carries Hugging Face's feature description.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mergevq.errors import InputError
from mergevq.weights_file import file_sha256
from mergevq_platform.data.images.kinds import FormatCounts
from mergevq_platform.data.images.transparency import WHITE
from mergevq_platform.data.reading import Background
from mergevq_platform.storage.files import whole_file, write_whole

FORMAT = "mergevq-shards/1"
MANIFEST = "manifest.json"
ROW_GROUP_ROWS = 128
SHARD_ROWS = 4096


class ImageRecord(NamedTuple):
    """One image to be written."""

    data: bytes
    path: str
    label: int


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
    """An image that was not packed, and why."""

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
    """What a data directory holds."""

    splits: dict[str, Split]
    classes: tuple[str, ...]
    size: int | None  # side (or shorter side) in pixels; None: as they came
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
                size=tree["size"],
                source=tree["source"],
                background=tree.get("background"),
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{where} is damaged ({error}): copy the set again, or delete it and pack it again"
            ) from None


def shard_from(entry: dict[str, Any]) -> Shard:
    """A `Shard` of its JSON form."""
    return Shard(**{**entry, "row_groups": tuple(entry["row_groups"])})


def schema(classes: Sequence[str]) -> pa.Schema:
    """The Arrow schema of a shard, with Hugging Face's feature description."""
    label = (
        {"names": list(classes), "_type": "ClassLabel"} if classes else {"dtype": "int64", "_type": "Value"}
    )
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema(
        [("image", image), ("label", pa.int64())], metadata={"huggingface": json.dumps(features)}
    )


def write_shard(
    directory: Path,
    file: str,
    records: Iterable[ImageRecord],
    classes: Sequence[str],
    *,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> Shard | None:
    """Write one shard: the file appears whole or not at all, and not at all (None) without records.

    Holds one row group in memory. Raises `OSError` of the disk, having left nothing.
    """
    target = directory / file
    groups: list[int] = []
    layout = schema(classes)
    with whole_file(target) as temporary:
        # Images are compressed already, and a dictionary of them would only cost memory.
        options: dict[str, Any] = {
            "compression": "none",
            "use_dictionary": False,
            "write_statistics": ["label"],
        }
        with pq.ParquetWriter(temporary, layout, **options) as writer:
            source = iter(records)
            while part := list(islice(source, row_group_rows)):
                images = [{"bytes": record.data, "path": record.path} for record in part]
                columns = {"image": images, "label": [record.label for record in part]}
                writer.write_table(pa.table(columns, schema=layout))
                groups.append(len(part))
        size, checksum = temporary.stat().st_size, file_sha256(temporary)
    if not groups:
        target.unlink()
        return None
    return Shard(file=file, rows=sum(groups), bytes=size, row_groups=tuple(groups), sha256=checksum)


def write_set(
    directory: Path | str,
    splits: Mapping[str, Iterable[ImageRecord]],
    classes: Sequence[str],
    *,
    size: int,
    source: dict[str, Any],
    shard_rows: int = SHARD_ROWS,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> Manifest:
    """Write labelled splits of opaque PNG images. A directory that already holds the same `source` is left as it is.

    Raises `InputError` if the directory holds anything else.
    """
    directory = Path(directory)
    if existing := existing_manifest(directory):
        if existing.source == source:
            return existing
        raise InputError(
            f"{directory} already holds another image set: name another directory, or delete it first"
        )
    refuse_foreign_files(directory)
    done: dict[str, Split] = {}
    for name, records in splits.items():
        shards: list[Shard] = []
        source_rows = iter(records)
        while part := list(islice(source_rows, shard_rows)):
            shard = write_shard(
                directory, f"{name}-{len(shards):05d}.parquet", part, classes, row_group_rows=row_group_rows
            )
            assert shard is not None
            shards.append(shard)
        kinds = FormatCounts({"PNG": sum(shard.rows for shard in shards)}, 0, {})
        done[name] = Split(shards=tuple(shards), labelled=True, kinds=kinds)
    manifest = Manifest(splits=done, classes=tuple(classes), size=size, source=source, background=WHITE)
    write_whole(directory / MANIFEST, manifest.to_json())
    return manifest


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
