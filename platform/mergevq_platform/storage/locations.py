"""Locations of runs and checkpoints: a local path, or a URI that pyarrow opens (s3://, gs://, hdfs://)."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.fs

from mergevq.errors import InputError
from mergevq.hub import on_hub


def inside(location: str | Path, name: str) -> str:
    """`name` below a path or URI; a URI's query (`?endpoint_override=…`) stays at its end."""
    base, mark, query = str(location).partition("?") if "://" in str(location) else (str(location), "", "")
    below = name.strip("/")
    return f"{base.rstrip('/')}/{below}{mark}{query}" if below else f"{base}{mark}{query}"


def open_storage(location: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a path or URI and the path in it. Raises `InputError` for an unusable URI."""
    text = str(location)
    if on_hub(text):
        raise InputError(
            f"storage '{text}' is on the Hub, which holds no runs: name a path or s3://, and `mergevq push` the run afterwards"
        )
    try:
        if "://" in text:
            return pyarrow.fs.FileSystem.from_uri(text)
        return pyarrow.fs.LocalFileSystem(), str(local_path(text).resolve())
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"storage '{text}' cannot be opened: {error}") from None


def absolute(location: str) -> str:
    """A location whatever the working directory: a local path written out, a URI as it is."""
    return location if "://" in location else str(local_path(location).absolute())


def local_path(text: str) -> Path:
    """A local path, `~` and `~user` expanded. Raises `InputError` for a user that this machine does not know."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"'{text}': no user of that name here; write the path out") from None
