"""The files in an archive, at whatever depth: archives in it are entered, by their first bytes and not by their names."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mergevq.errors import InputError
from mergevq_platform.data.images.endings import SNIFFED, begins_as_image, ending, named_as_image
from mergevq_platform.data.parquet.manifest import Skipped
from mergevq_platform.data.sources.listing import is_hidden, readable
from mergevq_platform.data.sources.summary import HIDDEN, LeftOut
from mergevq_platform.data.sources.unpacking import (
    ARCHIVE_ENDINGS,
    UNREADABLE,
    NotWhole,
    archive_kind,
    next_header,
    plain_copy,
)

DEEPEST = 8  # archives in archives
COMPRESSED = 2  # of them compressed: each is unpacked to disk
REPLACED = "members that a later one of the same name replaces"


class Member(NamedTuple):
    """A regular file in an archive."""

    file: str  # the plain tar that holds its bytes
    where: str  # the archive it lies in, as it is named to people: all.tar/n01.tar
    inside: tuple[str, ...]  # the names of the archives it lies in, outermost first
    name: str  # in the innermost
    offset: int
    size: int
    image: bool

    @property
    def whole_name(self) -> str:
        """Its name with those of its archives."""
        return f"{self.where}/{self.name}"

    def read(self) -> bytes:
        """Its bytes."""
        with open(self.file, "rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


@dataclass
class Report:
    """Remarks on archives once they were read."""

    refused: list[Skipped] = field(default_factory=list)  # members that were not looked at
    left_out: LeftOut = field(default_factory=LeftOut)
    unpacked: list[tuple[str, int]] = field(default_factory=list)  # names and bytes of plain copies


def named_as_archive(name: str) -> bool:
    """Whether a file's name has the ending of an archive, in any case."""
    return ending(name) in ARCHIVE_ENDINGS


def kind_of(path: Path) -> str | None:
    """`archive_kind` of a file; None for one that cannot be read."""
    try:
        with path.open("rb") as stream:
            return archive_kind(stream, named=named_as_archive(path.name))
    except OSError:
        return None


def members(path: Path, where: str, scratch: Path, report: Report) -> Iterator[Member]:
    """The files in the archive at `path`, called `where` in what is said. Compressed ones are copied to `scratch` as tars.

    Raises `InputError` for an archive that is none, damaged, or of a kind that is not read.
    """
    kind = kind_of(path)
    if kind is None:
        raise InputError(f"{path} is not a whole tar or zip by its first bytes: download or copy it again")
    if kind in UNREADABLE:
        raise InputError(f"{path} is a {kind} archive, which is not read: unpack it, and name the folder")
    try:
        plain, compressed = path, 0
        if kind != "tar":
            status = path.stat()
            with path.open("rb") as stream:
                plain = plain_copy(
                    stream, kind, str(path), f"{where} {status.st_size} {status.st_mtime_ns}", scratch
                )
            compressed = 1
            report.unpacked.append((where, plain.stat().st_size))
        outermost = _Archive(
            plain, 0, plain.stat().st_size, (PurePosixPath(where).name,), where, compressed, scratch, report
        )
        yield from outermost.files()
    except NotWhole as error:
        raise InputError(f"{path} is not whole ({error}): download or copy it again") from None
    except tarfile.TarError as error:
        raise InputError(f"{path} is not a whole tar ({error}): download or copy it again") from None


class _Archive(NamedTuple):
    """A plain tar: the bytes from `base` to `end` of a file."""

    file: Path
    base: int
    end: int
    inside: tuple[str, ...]
    where: str
    compressed: int  # of the archives it lies in
    scratch: Path
    report: Report

    def files(self) -> Iterator[Member]:
        """Its regular files; archives in it are entered."""
        with self.file.open("rb") as stream:
            files: list[tuple[tarfile.TarFile, tarfile.TarInfo]] = []
            base: int | None = self.base
            while base is not None:  # archives that were joined as files: each ends before the next
                stream.seek(base)
                archive = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115  it holds nothing but the stream
                # A tar within, without end marks: what follows it is not its own.
                inside = takewhile(
                    lambda entry: entry.offset_data + entry.size <= self.end, archive.getmembers()
                )
                files += [(archive, entry) for entry in inside if not entry.isdir()]
                base = next_header(stream, archive.offset, self.end)
            newest = {PurePosixPath(entry.name): entry for _, entry in files}
            for archive, entry in files:
                if newest[PurePosixPath(entry.name)] is entry:
                    yield from self._file(archive, entry)
                else:  # as whoever unpacks it would lose it
                    self.report.left_out.add(REPLACED, f"{self.where}/{entry.name}")

    def _file(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Iterator[Member]:
        name = PurePosixPath(readable(entry.name))
        whole = f"{self.where}/{readable(entry.name)}"
        if reason := _outside(name):
            self.report.refused.append(Skipped(whole, reason))
        elif any(map(is_hidden, name.parts)):
            self.report.left_out.add(HIDDEN, whole)
        elif reason := _irregular(entry):
            self.report.refused.append(Skipped(whole, reason))
        else:
            kind, image = _looked_at(archive, entry, name)
            if kind is None:
                yield Member(
                    str(self.file), self.where, self.inside, str(name), entry.offset_data, entry.size, image
                )
            else:
                yield from self._entered(archive, entry, kind, name.name, whole)

    def _entered(
        self, archive: tarfile.TarFile, entry: tarfile.TarInfo, kind: str, name: str, where: str
    ) -> Iterator[Member]:
        inside, start = (*self.inside, name), entry.offset_data
        if kind in UNREADABLE:
            self.report.left_out.add(f"{kind} archives, which are not read", where)
            return
        if len(inside) > DEEPEST or (kind != "tar" and self.compressed >= COMPRESSED):
            self.report.left_out.add("archives too deep within others", where)
            return
        inner = self._replace(base=start, end=start + entry.size, inside=inside, where=where)
        try:
            if kind != "tar":
                section = archive.extractfile(entry)
                assert section is not None
                identity = f"{self.file.name} {start} {entry.size}"
                plain = plain_copy(section, kind, where, identity, self.scratch)
                self.report.unpacked.append((where, plain.stat().st_size))
                inner = inner._replace(
                    file=plain, base=0, end=plain.stat().st_size, compressed=self.compressed + 1
                )
            yield from inner.files()
        except (NotWhole, tarfile.TarError) as error:
            raise InputError(f"{where} is not whole ({error}): download or copy it again") from None


def _looked_at(
    archive: tarfile.TarFile, entry: tarfile.TarInfo, name: PurePosixPath
) -> tuple[str | None, bool]:
    """(kind of archive, whether it is an image). What is called an archive and is none is an ordinary file."""
    if named_as_image(name.name):
        return None, True
    if ending(name.name) and not named_as_archive(name.name):
        return None, False
    section = archive.extractfile(entry)
    assert section is not None
    if not ending(name.name) and begins_as_image(section.read(SNIFFED)):
        return None, True
    section.seek(0)
    return archive_kind(section, named=named_as_archive(name.name)), False


def _outside(name: PurePosixPath) -> str | None:
    return "points outside of its tar" if name.is_absolute() or ".." in name.parts else None


def _irregular(member: tarfile.TarInfo) -> str | None:
    return None if member.isreg() and member.sparse is None else "is not a regular file"
