"""A directory on the local disk or on any filesystem that pyarrow knows (s3://, gs://, file://)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs

from mergevq.errors import InputError
from mergevq_platform.data.hub import local_folder
from mergevq_platform.data.sources.listing import is_hidden


def is_hidden_parquet(part: str) -> bool:
    """Whether a folder or Parquet file of this name is passed over: hidden ones, and those that Spark writes for itself."""
    return part.startswith("_") or is_hidden(part)


@dataclass(frozen=True)
class Location:
    """A directory on some filesystem; of a data set of the Hub, its folder in this machine's cache."""

    filesystem: pyarrow.fs.FileSystem
    root: str

    @classmethod
    def of(cls, path: str | Path) -> Location:
        """Raises `InputError` for a URI that no filesystem of pyarrow knows, and where the Hub does not give a data set."""
        text = str(local_folder(path))
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

    def sha256(self, file: str) -> str:
        """Hex sha256 of a file."""
        digest = hashlib.sha256()
        with self.filesystem.open_input_stream(self.join(file)) as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    def sizes(self) -> dict[str, int]:
        """Parquet files below the directory, relative name → bytes; hidden ones left out."""
        selector = pyarrow.fs.FileSelector(self.root, recursive=True, allow_not_found=True)
        prefix = self.root + "/"
        found = {
            info.path.removeprefix(prefix): int(info.size or 0)
            for info in self.filesystem.get_file_info(selector)
            if info.type == pyarrow.fs.FileType.File and info.path.lower().endswith(".parquet")
        }
        return {
            name: found[name]
            for name in sorted(found)
            if not any(is_hidden_parquet(part) for part in name.split("/"))
        }
