"""Reading picture sets: our shards with a manifest, or any bare tree of Hugging Face-style Parquet files.

Works on local paths and on every URI that pyarrow's filesystems know (s3://, gs://, file://).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from mergevq.errors import InputError
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
OPEN_FILES = 32


class Row(NamedTuple):
    """One picture as stored."""

    data: bytes | None
    label: int
    sample: int


@dataclass(frozen=True)
class RowGroup:
    """The pictures of a row group, in memory."""

    images: pa.Array
    labels: np.ndarray
    first_row: int

    def row(self, row_id: int) -> Row:
        """The picture of a global row number that lies in this group."""
        index = row_id - self.first_row
        return Row(self.images[index].as_py(), int(self.labels[index]), row_id)


class Dataset:
    """A split. Rows are numbered 0 .. rows-1 over its shards in order; that number is the sample's identity.

    It can be pickled: open files stay behind. `labelled` tells whether there are labels (else every label is -1).
    """

    def __init__(
        self,
        path: str,
        split: str,
        shards: Sequence[Shard],
        *,
        classes: Sequence[str],
        labelled: bool,
        fingerprint: str,
        columns: Columns,
        size: int | None = None,
    ) -> None:
        self.path, self.split, self.shards = path, split, tuple(shards)
        self.classes, self.labelled, self.fingerprint, self.size = tuple(classes), labelled, fingerprint, size
        self.columns = columns
        self.row_group_sizes = np.array(
            [rows for shard in shards for rows in shard.row_groups], dtype=np.int64
        )
        self.row_group_starts = np.concatenate([[0], np.cumsum(self.row_group_sizes)])
        self._places = [
            (shard, group)
            for shard in range(len(shards))
            for group in range(len(self.shards[shard].row_groups))
        ]
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._recent: OrderedDict[int, RowGroup] = OrderedDict()

    @property
    def rows(self) -> int:
        """Pictures of the split."""
        return int(self.row_group_starts[-1])

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.classes) if self.labelled else 0

    def group_of(self, row_ids: np.ndarray | int) -> np.ndarray:
        """The row groups, int64, that hold the rows."""
        return np.searchsorted(self.row_group_starts, row_ids, side="right") - 1

    def place(self, row_id: int) -> str:
        """Where a row lies, for messages: its shard and row in it."""
        group = int(self.group_of(row_id))
        shard, _ = self._places[group]
        before = sum(item.rows for item in self.shards[:shard])
        return f"{self.shards[shard].file} row {row_id - before}"

    def row_group(self, group: int) -> RowGroup:
        """Read a row group. Raises `InputError` naming the shard if it is missing or damaged."""
        shard, index = self._places[group]
        wanted = [self.columns.image, *([self.columns.label] if self.columns.label else [])]
        try:
            table = self._file(shard).read_row_group(index, columns=wanted, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(shard, index, error) from None
        if len(table) != self.row_group_sizes[group]:
            raise InputError(
                f"{self._name(shard)} has changed since it was opened: start again, or pack the data again"
            )
        image = table.column(0).combine_chunks()
        images = image.field("bytes") if pa.types.is_struct(image.type) else image
        labels = np.full(len(table), -1, dtype=np.int64)
        if self.columns.label and self.labelled:
            labels = (
                table.column(1).combine_chunks().cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
            )
        return RowGroup(images=images, labels=labels, first_row=int(self.row_group_starts[group]))

    def read(self, row_ids: Iterable[int]) -> list[Row]:
        """Rows by number, in the order asked for. Keeps the last few row groups in memory."""
        rows = []
        for row_id in map(int, row_ids):
            if not 0 <= row_id < self.rows:
                raise IndexError(f"row {row_id} of {self.rows}")
            group = int(self.group_of(row_id))
            if group not in self._recent:
                self._recent[group] = self.row_group(group)
                if len(self._recent) > 4:
                    self._recent.popitem(last=False)
            self._recent.move_to_end(group)
            rows.append(self._recent[group].row(row_id))
        return rows

    def verify(self) -> None:
        """Compare every shard with its checksum. Raises `InputError` naming the first that differs."""
        for shard in self.shards:
            if shard.sha256 is None:
                raise InputError(
                    f"{self.path} has no manifest, so no checksums: pack it with `mergevq data pack`"
                )
            with self._location.filesystem.open_input_stream(self._location.join(shard.file)) as stream:
                digest = hashlib.sha256()
                while block := stream.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != shard.sha256:
                raise InputError(
                    f"{self.path}/{shard.file} does not match its checksum: copy or pack it again"
                )

    @cached_property
    def _location(self) -> Location:
        return Location.of(self.path)

    def _name(self, shard: int) -> str:
        return f"{self.path.rstrip('/')}/{self.shards[shard].file}"

    def _file(self, shard: int) -> pq.ParquetFile:
        if shard not in self._files:
            source = self._location.filesystem.open_input_file(self._location.join(self.shards[shard].file))
            # On object stores the column chunks of a row group are fetched in one request.
            self._files[shard] = pq.ParquetFile(source, pre_buffer=not self._location.local)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(shard)
        return self._files[shard]

    def _unreadable(self, shard: int, group: int, error: Exception) -> Exception:
        self._files.pop(shard, None)
        reason = " ".join(str(error).split())[:200]
        if (
            not self._location.local
            and isinstance(error, OSError)
            and not isinstance(error, FileNotFoundError)
        ):
            return OSError(f"reading {self._name(shard)} failed: {reason}")  # perhaps only the network
        return InputError(
            f"{self._name(shard)}: row group {group} cannot be read ({reason}): copy or pack it again"
        )

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_location"}
        return {**state, "_files": OrderedDict(), "_recent": OrderedDict()}


@dataclass(frozen=True)
class Columns:
    """Which columns of a Parquet file hold the picture and its label."""

    image: str = "image.bytes"
    label: str | None = "label"


@dataclass(frozen=True)
class Location:
    """A directory on some filesystem."""

    filesystem: pyarrow.fs.FileSystem
    root: str

    @classmethod
    def of(cls, path: str | Path) -> Location:
        """Raises `InputError` for a URI that no filesystem of pyarrow knows."""
        text = str(path)
        try:
            if "://" in text:
                filesystem, root = pyarrow.fs.FileSystem.from_uri(text)
                return cls(filesystem, root.rstrip("/"))
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"'{text}' cannot be opened: {' '.join(str(error).split())}") from None
        return cls(pyarrow.fs.LocalFileSystem(), str(Path(text).expanduser().absolute()))

    @property
    def local(self) -> bool:
        """Whether it is a path of this machine."""
        return isinstance(self.filesystem, pyarrow.fs.LocalFileSystem)

    def join(self, file: str) -> str:
        """The filesystem's path of a file in the directory."""
        return f"{self.root}/{file}"

    def text(self, file: str) -> str | None:
        """The text of a small file, None where there is none."""
        if self.filesystem.get_file_info(self.join(file)).type != pyarrow.fs.FileType.File:
            return None
        with self.filesystem.open_input_stream(self.join(file)) as stream:
            return stream.read().decode()

    def sizes(self) -> dict[str, int]:
        """Parquet files below the directory, relative name → bytes; hidden ones left out."""
        selector = pyarrow.fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        prefix = self.root + "/"
        found = {
            info.path.removeprefix(prefix): int(info.size or 0)
            for info in self.filesystem.get_file_info(selector)
            if info.type == pyarrow.fs.FileType.File and info.path.endswith(".parquet")
        }
        return {
            name: found[name]
            for name in sorted(found)
            if not any(part[0] in "._" for part in name.split("/"))
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
