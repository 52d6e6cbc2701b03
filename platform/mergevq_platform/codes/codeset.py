"""Code sets: the codes of an image set by a frozen tokenizer, in Parquet shards with a manifest.

Columns: `indices` list<int32> (K codes in canonical order), `assignment` list<int16> (N slots), `label`, `sample` (the
image's row in its own set), `crop` (see `views`), `keep` (K). Either every row group holds one kept count, so that a batch has
one, or every image has its own, chosen by an allocator (`CodeAllocation`). The manifest holds counts, checksums, and the
identity of the tokenizer, of the images and of the allocator.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mergevq.errors import InputError
from mergevq.files import whole_file
from mergevq.ragged import NO_TOKEN
from mergevq.weights_file import file_sha256
from mergevq_platform.codes.manifest import (
    CodeManifest,
    CodeShard,
    CountHistogram,
    Group,
    read_manifest,
)
from mergevq_platform.data.parquet.location import Location
from mergevq_platform.data.parquet.manifest import MANIFEST
from mergevq_platform.data.parquet.splits import same_split

HELD_BYTES = 256 * 1024**2  # row groups that a reader keeps in memory
OPEN_FILES = 32
SCHEMA = pa.schema(
    [
        ("indices", pa.list_(pa.int32())),
        ("assignment", pa.list_(pa.int16())),
        ("label", pa.int32()),
        ("sample", pa.int64()),
        ("crop", pa.int16()),
        ("keep", pa.int16()),
    ]
)


class Codes(NamedTuple):
    """Rows of a code set. K is the most that one of them keeps."""

    indices: np.ndarray  # (B, K) int64, padded with -1 at the end
    assignment: np.ndarray  # (B, N) int64
    label: np.ndarray  # (B,) int64, -1 for none
    sample: np.ndarray  # (B,) int64
    crop: np.ndarray  # (B,) int64
    keep: np.ndarray  # (B,) int64, the kept count of each


class CodeSet:
    """A split of a code set: row groups by number. It can be pickled: open files stay behind."""

    def __init__(self, path: str, split: str, manifest: CodeManifest) -> None:
        self.path, self.split, self.manifest = path, split, manifest
        self.shards = manifest.splits[split]
        self.places = [
            (shard, group) for shard, item in enumerate(self.shards) for group in range(len(item.groups))
        ]
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._held: OrderedDict[int, Codes] = OrderedDict()
        self._held_bytes = 0

    @property
    def rows(self) -> int:
        """Views: images times crops, however many kept counts are stored of each."""
        return self.manifest.views[self.split]

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.manifest.classes)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return bool(self.manifest.classes)

    @property
    def ragged(self) -> bool:
        """Whether every image has its own kept count."""
        return self.manifest.allocation is not None

    def histogram(self) -> CountHistogram:
        """How many views keep how many tokens, of a ragged set."""
        assert self.manifest.allocation is not None
        return self.manifest.allocation.histograms[self.split]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the split's content."""
        checksums = json.dumps([[shard.file, shard.sha256] for shard in self.shards])
        return hashlib.sha256(checksums.encode()).hexdigest()

    def groups_of(self, keep: int) -> list[int]:
        """The numbers of the row groups at a kept count. Raises `InputError` that lists the stored counts, and for a ragged set."""
        if self.manifest.allocation is not None:
            raise InputError(
                f"{self.path} holds every image at its own kept count (mean {self.manifest.allocation.budget:g}), not at "
                f"{keep}: set task.model.ragged=true, or tokenize with --keep {keep}"
            )
        found = [
            number
            for number, (shard, group) in enumerate(self.places)
            if self.shards[shard].groups[group].keep == keep
        ]
        if not found:
            stored = ", ".join(map(str, self.manifest.keeps))
            raise InputError(
                f"{self.path} holds no codes at {keep} kept tokens (stored: {stored}): tokenize with --keep {keep} too, "
                "or leave it out of task.keep"
            )
        return found

    def group_rows(self, number: int) -> int:
        """Rows of a row group."""
        shard, group = self.places[number]
        return self.shards[shard].groups[group].rows

    def group(self, number: int) -> Codes:
        """A row group; the last ones read are kept in memory. Raises `InputError` for a damaged or changed shard."""
        if number not in self._held:
            codes = self._read(number)
            self._held[number] = codes
            self._held_bytes += sum(array.nbytes for array in codes)
            while self._held_bytes > HELD_BYTES and len(self._held) > 1:
                self._held_bytes -= sum(array.nbytes for array in self._held.popitem(last=False)[1])
        self._held.move_to_end(number)
        return self._held[number]

    def verify(self) -> None:
        """Compare every shard with its checksum. Raises `InputError` naming the first that differs."""
        for shard in self.shards:
            if self._location.sha256(shard.file) != shard.sha256:
                raise InputError(f"{self.path}/{shard.file} does not match its checksum: tokenize again")

    @cached_property
    def _location(self) -> Location:
        return Location.of(self.path)

    def _read(self, number: int) -> Codes:
        shard, index = self.places[number]
        name = self.shards[shard].file
        try:
            if shard not in self._files:
                source = self._location.filesystem.open_input_file(self._location.join(name))
                self._files[shard] = pq.ParquetFile(source, pre_buffer=not self._location.local)
                if len(self._files) > OPEN_FILES:
                    self._files.popitem(last=False)[1].close()
            self._files.move_to_end(shard)
            table = self._files[shard].read_row_group(index, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{self.path}/{name} cannot be read ({reason}): tokenize again") from None
        rows = self.group_rows(number)
        if len(table) != rows:
            raise InputError(f"{self.path}/{name} has changed since it was opened: start again")

        def listed(column: str) -> np.ndarray:
            flat = table[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            return flat.reshape(rows, -1).astype(np.int64)

        def plain(column: str) -> np.ndarray:
            return table[column].to_numpy().astype(np.int64)

        keep = plain("keep")
        indices = (
            _padded_lists(table["indices"], keep, f"{self.path}/{name}") if self.ragged else listed("indices")
        )
        return Codes(indices, listed("assignment"), plain("label"), plain("sample"), plain("crop"), keep)

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in self.__dict__.items() if key != "_location"}
        return {**state, "_files": OrderedDict(), "_held": OrderedDict(), "_held_bytes": 0}


def open_codes(path: str | Path, split: str) -> CodeSet:
    """A split of the code set at a path or URI. Raises `InputError` for a missing, unfinished or changed one."""
    location = Location.of(path)
    manifest = read_manifest(path, location)
    split = split if split in manifest.splits else _another_name(split, manifest)
    if split not in manifest.splits:
        raise InputError(
            f"{path} has no split '{split}': it has {', '.join(sorted(manifest.splits))}; tokenize again, or change data"
        )
    sizes = location.sizes()
    for shard in manifest.splits[split]:
        if sizes.get(shard.file) != shard.bytes:
            raise InputError(
                f"{path}/{shard.file} is missing or has changed ({MANIFEST} says {shard.bytes} bytes): tokenize again"
            )
    return CodeSet(str(path) if "://" in str(path) else location.root, split, manifest)


def fit_width(indices: np.ndarray, width: int) -> np.ndarray:
    """Indices (B, K) with the columns beyond `width` cut off, or -1 in those that are missing."""
    missing = max(0, width - indices.shape[1])
    return np.pad(indices[:, :width], ((0, 0), (0, missing)), constant_values=NO_TOKEN)


def _padded_lists(column: pa.ChunkedArray, keep: np.ndarray, where: str) -> np.ndarray:
    lists = column.combine_chunks()
    if not np.array_equal(lists.value_lengths().to_numpy(zero_copy_only=False), keep):
        raise InputError(f"{where} holds codes of other counts than it says: tokenize again")
    padded = np.full((len(keep), int(keep.max(initial=0))), NO_TOKEN, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < keep[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
    return padded


def _another_name(split: str, manifest: CodeManifest) -> str:
    return next((name for name in manifest.splits if same_split(name, split)), split)


def write_shard(directory: Path, file: str, groups: Sequence[tuple[int | None, Codes]]) -> CodeShard:
    """Write (kept count, None where each row has its own, and codes) as the row groups of one shard; the file appears whole
    or not at all."""
    target = directory / file
    with whole_file(target) as temporary:
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            for _, codes in groups:
                writer.write_table(_table(codes), row_group_size=len(codes.label))
        size, checksum = temporary.stat().st_size, file_sha256(temporary)
    return CodeShard(file, size, checksum, tuple(Group(len(codes.label), keep) for keep, codes in groups))


def _table(codes: Codes) -> pa.Table:
    def lists(array: np.ndarray, counts: np.ndarray, kind: pa.DataType) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        flat = array[np.arange(array.shape[1]) < counts[:, None]]
        return pa.ListArray.from_arrays(offsets, pa.array(flat, kind))

    cells = np.full(len(codes.label), codes.assignment.shape[1])
    columns = [
        lists(codes.indices, codes.keep, pa.int32()),
        lists(codes.assignment, cells, pa.int16()),
        pa.array(codes.label, pa.int32()),
        pa.array(codes.sample, pa.int64()),
        pa.array(codes.crop, pa.int16()),
        pa.array(codes.keep, pa.int16()),
    ]
    return pa.table(columns, schema=SCHEMA)
