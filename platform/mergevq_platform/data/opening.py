"""Finding what a data directory holds: our shards with a manifest, or any bare tree of Hugging Face-style Parquet files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from mergevq.errors import InputError
from mergevq_platform.data.dataset import Columns, Dataset
from mergevq_platform.data.location import Location
from mergevq_platform.data.shards import MANIFEST, Manifest, Shard, Split

PARTS = ".parts"  # the folder of a pack that has not ended
SAME_SPLIT = {
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "eval": "val",
    "training": "train",
    "testing": "test",
}


def open_dataset(path: str | Path, split: str) -> Dataset:
    """A split of a picture set; see `Dataset`. Names of the validation split (val, validation, …) mean the same.

    Raises `InputError`, naming path and fix, for a missing directory or split, an empty, missing or changed shard.
    """
    location, name = _existing(path)
    if (manifest := read_manifest(path, location)) is not None:
        return _from_manifest(name, location, manifest, split)
    return _from_footers(name, location, split)


def split_names(path: str | Path) -> list[str]:
    """The splits of a picture set. Raises `InputError` for a missing directory."""
    location, _ = _existing(path)
    if (manifest := read_manifest(path, location)) is not None:
        return list(manifest.splits)
    return list(_files_by_split(location))


def read_manifest(path: str | Path, location: Location | None = None) -> Manifest | None:
    """The manifest of a picture set, None for bare Parquet. Raises `InputError` for a damaged one."""
    location = location or Location.of(path)
    text = location.text(MANIFEST)
    return Manifest.from_json(text, f"{path}/{MANIFEST}") if text is not None else None


def _existing(path: str | Path) -> tuple[Location, str]:
    location = Location.of(path)
    name = str(path) if "://" in str(path) else location.root
    try:
        kind = location.filesystem.get_file_info(location.root).type
    except OSError as error:
        raise InputError(f"'{name}' cannot be reached: {' '.join(str(error).split())[:200]}") from None
    if kind == pyarrow.fs.FileType.NotFound:
        raise InputError(
            f"no data at {name}: make it with `mergevq data shapes DIR` or `mergevq data pack SOURCE DIR`, or correct data.path"
        )
    if kind == pyarrow.fs.FileType.File:
        raise InputError(f"{name} is a file: data.path is the directory that holds the Parquet shards")
    return location, name


def _from_manifest(name: str, location: Location, manifest: Manifest, wanted: str) -> Dataset:
    split = manifest.splits.get(wanted) or manifest.splits.get(_canonical(wanted))
    if split is None:
        raise _missing_split(name, wanted, manifest.splits)
    _check_shards(name, location, split)
    checksums = json.dumps([[shard.file, shard.rows, shard.sha256] for shard in split.shards])
    return Dataset(
        name,
        wanted,
        split.shards,
        classes=manifest.classes,
        labelled=split.labelled,
        fingerprint=hashlib.sha256(checksums.encode()).hexdigest(),
        columns=Columns(),
        size=manifest.size,
    )


def _check_shards(name: str, location: Location, split: Split) -> None:
    sizes = location.sizes()
    for shard in split.shards:
        if shard.file not in sizes:
            raise InputError(
                f"{name}/{shard.file} is missing, though {MANIFEST} lists it: copy or pack the data again"
            )
        if sizes[shard.file] != shard.bytes:
            raise InputError(
                f"{name}/{shard.file} has {sizes[shard.file]} bytes, {MANIFEST} says {shard.bytes}: copy or pack the data again"
            )
    if not split.rows:
        raise InputError(f"{name}: the split holds no pictures: pack it again from a source that has some")


def _from_footers(name: str, location: Location, wanted: str) -> Dataset:
    if location.filesystem.get_file_info(location.join(PARTS)).type != pyarrow.fs.FileType.NotFound:
        raise InputError(
            f"{name} holds a pack that has not ended: run the same `mergevq data pack` command again, it goes on"
        )
    found = _files_by_split(location)
    if not found:
        raise InputError(
            f"{name} holds no Parquet files: pack pictures with `mergevq data pack {name} DIR` and use DIR"
        )
    files = found.get(wanted) or found.get(_canonical(wanted))
    if files is None:
        raise _missing_split(name, wanted, found)
    sizes = location.sizes()
    with ThreadPoolExecutor(16) as pool:  # one request per file on an object store
        footers = list(pool.map(lambda file: _footer(name, location, file, sizes[file]), files))
    columns = _columns(name, footers[0].schema)
    for file, footer in zip(files, footers, strict=True):
        if not footer.metadata.num_rows:
            raise InputError(f"{name}/{file} holds no rows: delete it, or write it again")
        if _columns(f"{name}/{file}", footer.schema) != columns:
            raise InputError(
                f"{name}/{file} has other columns than {files[0]}: keep one kind of file in a directory"
            )
    shards = [
        Shard(
            file=file,
            rows=footer.metadata.num_rows,
            bytes=sizes[file],
            row_groups=tuple(
                footer.metadata.row_group(i).num_rows for i in range(footer.metadata.num_row_groups)
            ),
        )
        for file, footer in zip(files, footers, strict=True)
    ]
    identity = json.dumps(
        [[file, sizes[file], footer.digest] for file, footer in zip(files, footers, strict=True)]
    )
    highest = _highest_label(name, location, files, footers, columns)
    classes = _class_names(footers[0].schema, columns) or tuple(str(index) for index in range(highest + 1))
    if highest >= len(classes):
        raise InputError(f"{name} has the label {highest}, but its metadata names {len(classes)} classes")
    return Dataset(
        name,
        wanted,
        shards,
        classes=classes,
        labelled=highest >= 0,
        fingerprint=hashlib.sha256(identity.encode()).hexdigest(),
        columns=columns,
    )


class _Footer(NamedTuple):
    metadata: pq.FileMetaData
    schema: pa.Schema
    digest: str


def _footer(name: str, location: Location, file: str, size: int) -> _Footer:
    try:
        with location.filesystem.open_input_file(location.join(file)) as source:
            if size < 12:
                raise InputError(f"{name}/{file} is empty: delete it, or copy it again")
            length = int.from_bytes(source.read_at(4, size - 8), "little")
            raw = source.read_at(min(length + 8, size), max(0, size - length - 8))
            metadata = pq.read_metadata(source)
            return _Footer(metadata, metadata.schema.to_arrow_schema(), hashlib.sha256(raw).hexdigest())
    except InputError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}/{file} is not a whole Parquet file ({reason}): copy or download it again"
        ) from None


def _files_by_split(location: Location) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for file in location.sizes():
        found.setdefault(_split_of(file), []).append(file)
    return found


def _split_of(file: str) -> str:
    # train-00000-of-00010.parquet (hub), train/0000.parquet (converted branches), train.parquet
    path = PurePosixPath(file)
    for part in (path.stem, *reversed(path.parent.parts)):
        if match := re.fullmatch(
            r"(?:partial-)?(train|training|val|valid|validation|dev|eval|test|testing)(?:[-_.].*)?", part
        ):
            return _canonical(match[1])
    return re.split(r"[-_.]\d", path.stem)[0]


def same_split(one: str, other: str) -> bool:
    """Whether two names mean one split: `training` is `train`, `validation` is `val`."""
    return _canonical(one) == _canonical(other)


def _canonical(split: str) -> str:
    return SAME_SPLIT.get(split, split)


def _missing_split(name: str, wanted: str, present: Iterable[str]) -> InputError:
    return InputError(
        f"{name} has no split '{wanted}', only {', '.join(present)}: correct data.train_split or data.evaluation_split, or pack one"
    )


def _columns(name: str, schema: pa.Schema) -> Columns:
    pictures = [
        f"{item.name}.bytes"
        for item in schema
        if pa.types.is_struct(item.type) and item.type.get_field_index("bytes") >= 0
    ]
    pictures += [
        item.name for item in schema if pa.types.is_binary(item.type) or pa.types.is_large_binary(item.type)
    ]
    preferred = [column for column in pictures if column.split(".")[0] == "image"] or pictures
    if len(preferred) != 1:
        raise InputError(
            f"{name} needs one column 'image' (struct with a field 'bytes', or binary); its columns: {', '.join(schema.names)}"
        )
    return Columns(image=preferred[0], label="label" if "label" in schema.names else None)


def _class_names(schema: pa.Schema, columns: Columns) -> tuple[str, ...]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features[columns.label]["names"])
    except (KeyError, ValueError, TypeError):
        return ()


def _highest_label(
    name: str, location: Location, files: Sequence[str], footers: Sequence[_Footer], columns: Columns
) -> int:
    """The highest label of the split; -1 where all are -1 or there is no such column."""
    if columns.label is None:
        return -1
    highest = -1
    for file, footer in zip(files, footers, strict=True):
        kind = footer.schema.field(columns.label).type
        if not pa.types.is_integer(kind):
            raise InputError(f"{name}/{file}: column '{columns.label}' is {kind}, it must hold class numbers")
        statistics = [
            _statistics(footer.metadata.row_group(i), columns.label)
            for i in range(footer.metadata.num_row_groups)
        ]
        if all(item is not None and item.has_min_max for item in statistics):
            highest = max([highest, *(int(item.max) for item in statistics)])
            continue
        with location.filesystem.open_input_file(location.join(file)) as source:
            labels = pq.read_table(source, columns=[columns.label]).column(0).drop_null()
        highest = max([highest, *(int(value) for value in labels.unique().to_pylist())])
    return highest


def _statistics(group: pq.RowGroupMetaData, column: str) -> Any:
    names = [group.column(index).path_in_schema for index in range(group.num_columns)]
    return group.column(names.index(column)).statistics
