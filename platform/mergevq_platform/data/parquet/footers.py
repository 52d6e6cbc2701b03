"""The footers of Parquet files: schema, rows, and the metadata of each column chunk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mergevq.errors import InputError
from mergevq_platform.data.parquet.location import Location


class Footer(NamedTuple):
    """The footer of a file."""

    file: str
    bytes: int
    metadata: pq.FileMetaData
    schema: pa.Schema
    digest: str

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return int(self.metadata.num_rows)

    def chunks(self, column: str) -> list[pq.ColumnChunkMetaData]:
        """The metadata of a leaf column (`image.bytes`, `label`) in each row group."""
        groups = [self.metadata.row_group(index) for index in range(self.metadata.num_row_groups)]
        if not groups:
            return []
        names = [groups[0].column(index).path_in_schema for index in range(groups[0].num_columns)]
        return [group.column(names.index(column)) for group in groups]


class Footers:
    """The footers of the files of a directory, each read once; files without rows are passed over."""

    def __init__(self, name: str, location: Location, sizes: dict[str, int]) -> None:
        self.name, self.location, self.sizes = name, location, sizes
        self._read: dict[str, Footer] = {}

    def of(self, files: Sequence[str]) -> list[Footer]:
        """Footers of the files that hold rows. Raises `InputError` naming a file that is not whole."""
        missing = [file for file in files if file not in self._read]
        with ThreadPoolExecutor(16) as pool:  # one request per file on an object store
            self._read |= zip(missing, pool.map(self._footer, missing), strict=True)
        return [self._read[file] for file in files if self._read[file].rows]

    def first(self, files: Sequence[str]) -> Footer | None:
        """The first footer with rows; none where no file has any, or the first ones are damaged."""
        try:
            return next((footer for file in files for footer in self.of([file])), None)
        except InputError:
            return None  # said where the file itself is asked for

    def column(self, footer: Footer, column: str, groups: Sequence[int] | None = None) -> pa.ChunkedArray:
        """A column of some row groups (all by default) of a file; a leaf of a struct comes as a struct."""
        try:
            with self.location.filesystem.open_input_file(self.location.join(footer.file)) as source:
                file = pq.ParquetFile(source, metadata=footer.metadata)
                wanted = range(footer.metadata.num_row_groups) if groups is None else groups
                return file.read_row_groups(list(wanted), columns=[column], use_threads=False).column(0)
        except (pa.ArrowException, OSError) as error:
            raise self._broken(footer.file, error) from None

    def _footer(self, file: str) -> Footer:
        size = self.sizes[file]
        try:
            with self.location.filesystem.open_input_file(self.location.join(file)) as source:
                if size < 12:
                    raise InputError(f"{self.name}/{file} is empty: delete it, or copy it again")
                length = int.from_bytes(source.read_at(4, size - 8), "little")
                raw = source.read_at(min(length + 8, size), max(0, size - length - 8))
                metadata = pq.read_metadata(source)
                digest = hashlib.sha256(raw).hexdigest()
                return Footer(file, size, metadata, metadata.schema.to_arrow_schema(), digest)
        except (pa.ArrowException, OSError) as error:
            raise self._broken(file, error) from None

    def _broken(self, file: str, error: Exception) -> InputError:
        reason = " ".join(str(error).split())[:200]
        return InputError(
            f"{self.name}/{file} is not a whole Parquet file ({reason}): copy or download it again"
        )
