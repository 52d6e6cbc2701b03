"""Reading row groups of Parquet shards: whole, or a large one piece by piece."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mergevq.errors import InputError
from mergevq_platform.data.parquet.columns import Columns
from mergevq_platform.data.parquet.location import Location
from mergevq_platform.data.parquet.manifest import Shard

OPEN_FILES = 32
BUFFER_BYTES = 4 << 20  # that are fetched at a time of a row group that is read in pieces


class ShardFiles:
    """The files of a split's shards, of which the last few stay open. It can be pickled: open files stay behind."""

    def __init__(self, path: str, shards: Sequence[Shard], columns: Columns) -> None:
        self.path, self.shards, self.columns = path, tuple(shards), columns
        self._location: Location | None = None
        self._open: OrderedDict[int, tuple[pa.NativeFile, pq.FileMetaData]] = OrderedDict()

    @property
    def location(self) -> Location:
        """The directory of the shards."""
        if self._location is None:
            self._location = Location.of(self.path)
        return self._location

    def name(self, shard: int) -> str:
        """A shard, for messages."""
        return f"{self.path.rstrip('/')}/{self.shards[shard].file}"

    def image_bytes(self, shard: int, group: int) -> int:
        """Encoded bytes of the images of a row group, as far as the footer says."""
        _, metadata = self._file(shard)
        stated = metadata.row_group(group)
        columns = (stated.column(number) for number in range(stated.num_columns))
        return sum(
            item.total_uncompressed_size for item in columns if item.path_in_schema == self.columns.bytes
        )

    def read(self, shard: int, group: int, *, labels: bool) -> pa.Table:
        """A row group: its images, and its labels where they are wanted.

        Raises `InputError` naming the shard if it is missing or damaged, `OSError` where perhaps only the network failed.
        """
        source, metadata = self._file(shard)
        try:
            # On object stores the column chunks of a row group are fetched in one request. A ParquetFile keeps what it has
            # fetched so, and therefore lives no longer than this call.
            file = pq.ParquetFile(source, metadata=metadata, pre_buffer=not self.location.local)
            table = file.read_row_group(group, columns=self._wanted(labels), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(shard, group, error) from None
        if len(table) != self.shards[shard].row_groups[group]:
            raise self.changed(shard)
        return table

    def read_in_pieces(self, shard: int, group: int, rows: int, *, labels: bool) -> Iterator[pa.Table]:
        """The same, at most `rows` rows at a time, from the first on: memory holds a piece. Errors as of `read`."""
        source, metadata = self._file(shard)
        try:
            file = pq.ParquetFile(source, metadata=metadata, buffer_size=BUFFER_BYTES)
            for batch in file.iter_batches(rows, [group], self._wanted(labels), use_threads=False):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(shard, group, error) from None

    def labels(self, shard: int) -> pa.ChunkedArray:
        """The label column of a shard alone. Errors as of `read`."""
        source, metadata = self._file(shard)
        try:
            file = pq.ParquetFile(source, metadata=metadata)
            return file.read(columns=[self.columns.label], use_threads=False).column(0)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(shard, 0, error) from None

    def changed(self, shard: int) -> InputError:
        """The error for a shard that holds other rows than it did."""
        return InputError(
            f"{self.name(shard)} has changed since it was opened: start again, or pack the data again"
        )

    def _wanted(self, labels: bool) -> list[str]:
        return [self.columns.bytes, *([self.columns.label] if labels and self.columns.label else [])]

    def _file(self, shard: int) -> tuple[pa.NativeFile, pq.FileMetaData]:
        if shard not in self._open:
            try:
                source = self.location.filesystem.open_input_file(self.location.join(self.shards[shard].file))
                self._open[shard] = (source, pq.read_metadata(source))
            except (pa.ArrowException, OSError) as error:
                raise self._unreadable(shard, 0, error) from None
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(shard)
        return self._open[shard]

    def _unreadable(self, shard: int, group: int, error: Exception) -> Exception:
        self._open.pop(shard, None)
        reason = " ".join(str(error).split())[:200]
        if (
            not self.location.local
            and isinstance(error, OSError)
            and not isinstance(error, FileNotFoundError)
        ):
            return OSError(f"reading {self.name(shard)} failed: {reason}")  # perhaps only the network
        return InputError(
            f"{self.name(shard)}: row group {group} cannot be read ({reason}): copy or pack it again"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_location": None, "_open": OrderedDict()}
