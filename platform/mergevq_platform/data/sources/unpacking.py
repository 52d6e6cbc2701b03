"""Copies of compressed archives as plain tars, of which many processes read images at any offset."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

from mergevq.errors import InputError
from mergevq.files import whole_file
from mergevq_platform.data.sources.listing import is_hidden

ARCHIVE_ENDINGS = frozenset(
    {".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"}
)
_SEARCHED = 1024 * tarfile.BLOCKSIZE
UNREADABLE = {"7z", "rar"}
_FIRST_BYTES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
_BAD_DATA = (EOFError, OSError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, pa.ArrowException)


class NotWhole(ValueError):
    """An archive that ends early or is damaged; the message is the reason."""


def archive_kind(stream: IO[bytes], *, named: bool = True) -> str | None:
    """The kind of a file by its bytes, whatever its name: "tar", "gzip", "bzip2", "xz", "zstd" (of a tar), "zip", "7z",
    "rar"; None for anything else, and for nothing but zeros, an empty tar, where it is not `named` so. The stream's place is
    moved."""
    start = stream.tell()
    first = stream.read(tarfile.BLOCKSIZE)
    if _is_tar_header(first) and (named or any(first)):
        return "tar"
    kind = next((kind for magic, kind in _FIRST_BYTES.items() if first.startswith(magic)), None)
    if kind in (None, "zip", *UNREADABLE):
        return kind
    assert kind is not None
    stream.seek(start)
    try:
        with decompressed(stream, kind) as inner:
            return kind if _is_tar_header(inner.read(tarfile.BLOCKSIZE)) else None
    except _BAD_DATA:
        return kind if start == 0 else None  # cut within its first bytes: said when it is read


def decompressed(stream: IO[bytes], kind: str) -> IO[bytes]:
    """The bytes of a compressed stream, from its place on."""
    match kind:
        case "gzip":
            return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
        case "bzip2":
            return bz2.BZ2File(stream)
        case "xz":
            return lzma.LZMAFile(stream)
        case "zstd":
            return cast(IO[bytes], pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd"))
        case _:
            return stream


def plain_copy(source: IO[bytes], kind: str, name: str, identity: str, scratch: Path) -> Path:
    """A plain tar under `scratch` of the compressed archive `source`; made once for one `identity`.

    Members keep their names and kinds (nothing is unpacked to a path of its own). Raises `NotWhole`, and `InputError` for an
    encrypted zip.
    """
    copy = scratch / f"{Path(name).name}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}.tar"
    if copy.exists():
        return copy
    try:
        with whole_file(copy) as temporary, temporary.open("wb") as target:
            if kind == "zip":
                _tar_of_zip(source, target, name)
            else:
                with decompressed(source, kind) as inner:
                    shutil.copyfileobj(inner, target, 1 << 20)
    except _BAD_DATA as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the data
            raise
        raise NotWhole(" ".join(str(error).split()) or type(error).__name__) from None
    return copy


def _tar_of_zip(source: IO[bytes], target: IO[bytes], name: str) -> None:
    with zipfile.ZipFile(source) as packed, tarfile.open(fileobj=target, mode="w") as archive:
        for entry in packed.infolist():
            if entry.flag_bits & 1:
                raise InputError(f"{name} is encrypted ({entry.filename}): unpack it first")
            member = tarfile.TarInfo(_with_slashes(entry))
            if member.name.endswith("/"):  # a folder
                continue
            if stat.S_ISLNK(entry.external_attr >> 16):
                member.type, member.linkname = tarfile.SYMTYPE, "?"
                archive.addfile(member)
                continue
            member.size = entry.file_size
            try:
                with packed.open(entry) as inner:
                    archive.addfile(member, inner)
            except NotImplementedError as error:  # a compression that zipfile does not know
                raise InputError(
                    f"{name}: {entry.filename} cannot be unzipped ({error}): unpack it first"
                ) from None


def _with_slashes(entry: zipfile.ZipInfo) -> str:
    """The name of a member with `/` between folders: some programs of Windows write its own separator."""
    windows = entry.create_system == 0 and "/" not in entry.filename
    return entry.filename.replace("\\", "/") if windows else entry.filename


def next_header(stream: IO[bytes], start: int, end: int) -> int | None:
    """The offset of another tar behind the end marks of one, which begin at `start`; None where nothing of the kind follows."""
    stream.seek(start)
    for place in range(start, end, _SEARCHED):
        piece = stream.read(min(_SEARCHED, end - place))
        if rest := piece.lstrip(b"\0"):
            found = (len(piece) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            block = piece[found : found + tarfile.BLOCKSIZE]
            return place + found if len(block) == tarfile.BLOCKSIZE and _is_tar_header(block) else None
    return None


def _is_tar_header(block: bytes) -> bool:
    if len(block) == tarfile.BLOCKSIZE and not any(block):
        return True  # an empty one
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def holds_images_or_archives(path: Path, kind: str, named: frozenset[str]) -> bool:
    """Whether an archive has a member whose ending is one of `named`, looked for without unpacking it to disk.

    Raises `NotWhole`.
    """
    try:
        with path.open("rb") as stream:
            if kind == "zip":
                with zipfile.ZipFile(stream) as packed:
                    return any(_wanted(_with_slashes(entry), named) for entry in packed.infolist())
            with tarfile.open(
                fileobj=cast(io.BufferedReader, decompressed(stream, kind)),
                mode="r:" if kind == "tar" else "r|",
            ) as archive:
                return any(_wanted(member.name, named) for member in archive)
    except (*_BAD_DATA, tarfile.TarError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise NotWhole(" ".join(str(error).split()) or type(error).__name__) from None


def _wanted(name: str, named: frozenset[str]) -> bool:
    path = Path(name)
    return path.suffix.lower() in named and not any(part != ".." and is_hidden(part) for part in path.parts)
