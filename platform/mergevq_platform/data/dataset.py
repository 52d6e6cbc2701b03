"""A split of a picture set: rows by number, out of Parquet row groups."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mergevq.errors import InputError
from mergevq_platform.data.location import Location
from mergevq_platform.data.pictures import MAX_PIXELS, decode
from mergevq_platform.data.reading import Background
from mergevq_platform.data.shards import Shard
from mergevq_platform.data.transparency import WHITE

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


@dataclass(frozen=True)
class Columns:
    """Which columns of a Parquet file hold the picture and its label."""

    image: str = "image.bytes"
    label: str | None = "label"


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
        background: Background | None = WHITE,
    ) -> None:
        self.path, self.split, self.shards = path, split, tuple(shards)
        self.classes, self.labelled, self.fingerprint, self.size = tuple(classes), labelled, fingerprint, size
        self.columns, self.background = columns, background
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

    def image(self, row: Row, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The decoded RGB image of a row, on the set's background. Raises `BadPicture` as `decode` does."""
        return decode(row.data, max_pixels=max_pixels, background=self.background)

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
