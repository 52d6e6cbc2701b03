"""Writing Parquet shards: Hugging Face's column layout, small row groups, atomic files, a manifest with checksums.

Layout: `image` struct<bytes: binary, path: string>, `label` int64 (-1: none). `datasets.load_dataset(directory)` reads
it as well: the schema carries Hugging Face's feature description.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mergevq.errors import InputError
from mergevq.files import whole_file, write_whole
from mergevq.weights_file import file_sha256
from mergevq_platform.data.images.kinds import FormatCounts
from mergevq_platform.data.images.transparency import WHITE
from mergevq_platform.data.parquet.manifest import (
    MANIFEST,
    Manifest,
    Shard,
    Split,
    existing_manifest,
    refuse_foreign_files,
)

ROW_GROUP_ROWS = 128
SHARD_ROWS = 4096


class ImageRecord(NamedTuple):
    """One image to be written."""

    data: bytes
    path: str
    label: int


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
