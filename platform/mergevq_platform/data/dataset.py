"""A split of an image set: rows by number, out of Parquet row groups."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from mergevq.errors import InputError
from mergevq.image_size import ImageSize
from mergevq_platform.data.images.decoding import MAX_PIXELS, decode
from mergevq_platform.data.images.transparency import WHITE
from mergevq_platform.data.parquet.columns import Columns
from mergevq_platform.data.parquet.label_values import by_name, numbers, texts
from mergevq_platform.data.parquet.manifest import Shard
from mergevq_platform.data.parquet.row_groups import ShardFiles
from mergevq_platform.data.reading import Background

RECENT, RECENT_BYTES = 4, 256 << 20  # row groups that `Dataset.read` keeps, by number and by size
SLICE_BYTES = 64 << 20  # images of a row group beyond which `Dataset.read` takes it in pieces of this size
WHOLE_BYTES = 1 << 30  # images of the largest row group that is read whole


class ImageRow(NamedTuple):
    """One image as stored."""

    data: bytes | None
    label: int
    sample: int


@dataclass(frozen=True)
class RowGroup:
    """The images of a row group, or of a piece of one, in memory."""

    images: pa.ChunkedArray
    labels: np.ndarray
    first_row: int

    def holds(self, row_id: int) -> bool:
        """Whether a global row number lies in this group."""
        return self.first_row <= row_id < self.first_row + len(self.labels)

    def row(self, row_id: int) -> ImageRow:
        """The image of a global row number that lies in this group."""
        index = row_id - self.first_row
        return ImageRow(self.images[index].as_py(), int(self.labels[index]), row_id)


@dataclass
class PartialRead:
    """A large row group on its way past, piece by piece."""

    group: int
    next_row: int
    pieces: Iterator[RowGroup]


class Dataset:
    """A split. Rows are numbered 0 .. rows-1 over its shards in order; that number is the sample's identity.

    It can be pickled: open files stay behind. `labelled` tells whether there are labels (else every label is -1), `unlabelled`
    how many images have none, and `notes` what a reader should be told of the set, a line each. Of a label column of names,
    `label_names` are these in the order of their numbers; `shard_labels` are the classes of whole shards, where the names of
    folders say them.
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
        size: ImageSize | None = None,
        label_names: Sequence[str] | None = None,
        shard_labels: Sequence[int] | None = None,
        unlabelled: int = 0,
        notes: Sequence[str] = (),
        background: Background | None = WHITE,
    ) -> None:
        self.path, self.split, self.shards = path, split, tuple(shards)
        self.classes, self.labelled, self.fingerprint, self.size = tuple(classes), labelled, fingerprint, size
        self.columns, self.background, self.notes = columns, background, tuple(notes)
        self._label_names = None if label_names is None else tuple(label_names)
        self._shard_labels = None if shard_labels is None else tuple(shard_labels)
        self._unlabelled = unlabelled if labelled else sum(shard.rows for shard in shards)
        self.row_group_sizes = np.array(
            [rows for shard in shards for rows in shard.row_groups], dtype=np.int64
        )
        self.row_group_starts = np.concatenate([[0], np.cumsum(self.row_group_sizes)])
        self._places = [
            (shard, group)
            for shard in range(len(shards))
            for group in range(len(self.shards[shard].row_groups))
        ]
        self.slice_bytes, self.whole_bytes, self.recent_bytes = SLICE_BYTES, WHOLE_BYTES, RECENT_BYTES
        self._files = ShardFiles(path, shards, columns)
        self._recent: OrderedDict[int, RowGroup] = OrderedDict()  # by the first row
        self._walk: PartialRead | None = None

    @property
    def rows(self) -> int:
        """Images of the split."""
        return int(self.row_group_starts[-1])

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        return len(self.classes) if self.labelled else 0

    @property
    def unlabelled(self) -> int:
        """Images without a label."""
        return self._unlabelled

    def group_of(self, row_ids: np.ndarray | int) -> np.ndarray:
        """The row groups, int64, that hold the rows."""
        return np.searchsorted(self.row_group_starts, row_ids, side="right") - 1

    def place(self, row_id: int) -> str:
        """The location of a row, for messages: its shard and row in it."""
        group = int(self.group_of(row_id))
        shard, _ = self._places[group]
        before = sum(item.rows for item in self.shards[:shard])
        return f"{self.shards[shard].file} row {row_id - before}"

    def row_group(self, group: int) -> RowGroup:
        """Read a row group. Raises `InputError` naming the shard if it is missing or damaged, or the group too large."""
        shard, index = self._places[group]
        size = self._files.image_bytes(shard, index)
        if size > self.whole_bytes:
            raise InputError(
                f"{self._files.name(shard)}: row group {index} holds {size / 1e9:.3g} GB of images, and is read whole: at most "
                f"{self.whole_bytes / 1e9:.3g} GB; write row groups of about 100 rows, as `mergevq data pack` does"
            )
        table = self._files.read(shard, index, labels=self._labels_in_rows)
        return self._made(table, shard, int(self.row_group_starts[group]))

    def require_whole_groups(self) -> None:
        """Raise `InputError` where the row group of the most rows is too large to be read whole, as training reads them."""
        longest = int(self.row_group_sizes.argmax())
        if self._files.image_bytes(*self._places[longest]) > self.whole_bytes:
            self.row_group(longest)

    def read(self, row_ids: Iterable[int]) -> list[ImageRow]:
        """Rows by number, in the order asked for.

        Keeps the last few row groups in memory, of large ones only pieces: rows of these are best asked for in their order.
        """
        rows = []
        for row_id in map(int, row_ids):
            if not 0 <= row_id < self.rows:
                raise IndexError(f"row {row_id} of {self.rows}")
            held = next((first for first, piece in self._recent.items() if piece.holds(row_id)), None)
            if held is None:
                piece = self._piece(row_id)
                held = piece.first_row
                self._recent[held] = piece
                while len(self._recent) > 1 and (
                    len(self._recent) > RECENT or sum(map(_size, self._recent.values())) > self.recent_bytes
                ):
                    self._recent.popitem(last=False)
            self._recent.move_to_end(held)
            rows.append(self._recent[held].row(row_id))
        return rows

    def _piece(self, row_id: int) -> RowGroup:
        """The row group of a row, or as much of a large one as is read at a time."""
        group = int(self.group_of(row_id))
        shard, index = self._places[group]
        if self._files.image_bytes(shard, index) <= self.slice_bytes:
            return self.row_group(group)
        if self._walk is None or self._walk.group != group or self._walk.next_row > row_id:
            self._walk = PartialRead(group, int(self.row_group_starts[group]), self._pieces(group))
        for piece in self._walk.pieces:
            self._walk.next_row = piece.first_row + len(piece.labels)
            if piece.holds(row_id):
                return piece
        raise self._files.changed(shard)

    def _pieces(self, group: int) -> Iterator[RowGroup]:
        shard, index = self._places[group]
        each = self._files.image_bytes(shard, index) / int(self.row_group_sizes[group])
        rows = max(1, int(self.slice_bytes / each))
        first = int(self.row_group_starts[group])
        for table in self._files.read_in_pieces(shard, index, rows, labels=self._labels_in_rows):
            yield self._made(table, shard, first)
            first += len(table)

    @property
    def _labels_in_rows(self) -> bool:
        return self.labelled and self._shard_labels is None

    def _made(self, table: pa.Table, shard: int, first_row: int) -> RowGroup:
        images, field = table.column(self.columns.image), self.columns.field
        if field:
            images = pa.chunked_array(
                [chunk.field(field) for chunk in images.chunks], images.type.field(field).type
            )
        labels = np.full(len(table), -1, dtype=np.int64)
        if self.labelled and self._shard_labels is not None:
            labels[:] = self._shard_labels[shard]
        elif self.labelled and self.columns.label:
            labels = self._numbered(table.column(self.columns.label), shard)
        return RowGroup(images=images, labels=labels, first_row=first_row)

    def _numbered(self, values: pa.ChunkedArray, shard: int) -> np.ndarray:
        where = f"{self._files.name(shard)}: column '{self.columns.label}'"
        names = self._label_names
        return numbers(values, where) if names is None else by_name(texts(values, where), names, where)

    def class_images(self) -> tuple[int, ...]:
        """Images of each class, by the label column alone; () without labels."""
        counts = np.zeros(self.num_classes, dtype=np.int64)
        for number, shard in enumerate(self.shards if self.labelled else ()):
            if self._shard_labels is not None:
                labels = np.full(shard.rows, self._shard_labels[number])
            else:
                labels = self._numbered(self._files.labels(number), number)
            counts += np.bincount(labels[labels >= 0], minlength=self.num_classes)
        return tuple(counts.tolist())

    def image(self, row: ImageRow, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """The decoded RGB image of a row, on the set's background. Raises `ImageDecodeError` as `decode` does."""
        return decode(row.data, max_pixels=max_pixels, background=self.background)

    def verify(self) -> None:
        """Compare every shard with its checksum. Raises `InputError` naming the first that differs."""
        for shard in self.shards:
            if shard.sha256 is None:
                raise InputError(
                    f"{self.path} has no manifest, so no checksums: pack it with `mergevq data pack`"
                )
            if self._files.location.sha256(shard.file) != shard.sha256:
                raise InputError(
                    f"{self.path}/{shard.file} does not match its checksum: copy or pack it again"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recent": OrderedDict(), "_walk": None}


def _size(piece: RowGroup) -> int:
    return int(piece.images.nbytes)
