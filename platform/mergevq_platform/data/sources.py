"""Finding the pictures that are to be packed: folders, tars and Parquet, each as a list of where the bytes are."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from mergevq.errors import InputError
from mergevq_platform.data.reading import Reading
from mergevq_platform.data.shards import Skipped, whole_file
from mergevq_platform.data.splits import SAME_SPLIT

PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SPLITS = {"train", "val", "test", *SAME_SPLIT}


class Item(NamedTuple):
    """One picture of a source. `offset` -1: the whole file; of Parquet sources it is the row of the split."""

    name: str  # relative to the source; kept in the shard as the picture's path
    label: int
    file: str
    offset: int = -1
    size: int = -1


@dataclass(frozen=True, kw_only=True)
class Source:
    """The pictures of each split, in an order that does not depend on the file system."""

    kind: str
    splits: dict[str, list[Item]]
    classes: tuple[str, ...]
    blocks: dict[str, list[int]] = field(default_factory=dict)  # of Parquet splits: rows of each row group
    refused: list[Skipped] = field(default_factory=list)  # members of tars that were not looked at
    identity: str = ""  # of Parquet splits: their fingerprints
    ignored: int = 0  # files that are no pictures by their name


class Found(NamedTuple):
    """A picture before its class has a number; `folders` are the names above it, tars among them."""

    folders: tuple[str, ...]
    name: str
    file: str
    offset: int
    size: int


def find_source(source: str | Path, *, labels: str | Path | None = None, scratch: Path) -> Source:
    """What there is to pack at `source`: a folder tree, a tar, a folder of tars, or a tree of Parquet files.

    `labels` is a CSV of file name (or stem) and class, for pictures that lie in no class folders; Kaggle's
    LOC_val_solution.csv is one. Compressed tars are unpacked to tars under `scratch`. Raises `InputError` where there are
    no pictures, pictures with and without a class in one split, or a class that only a later split has.
    """
    root = Path(source).expanduser().absolute()  # tasks on other nodes have other working directories
    if not root.exists():
        raise InputError(
            f"no source at {source}: name a folder of pictures, a tar, or a folder of tars or Parquet files"
        )
    given = _read_labels(Path(labels)) if labels else {}
    if root.is_file() and not _is_tar(root.name):
        raise InputError(f"{source} is neither a folder nor a tar: name one of these")
    files = [] if root.is_file() else _files(root)
    tars = [root] if root.is_file() else [root / name for name in files if _is_tar(name)]
    if not tars and any(name.endswith(".parquet") for name in files):
        from mergevq_platform.data.parquet_source import from_parquet

        return from_parquet(root, Reading())
    refused: list[Skipped] = []
    found, ignored = _in_tars(root, tars, scratch, refused) if tars else _in_folders(root, files)
    if not found:
        raise InputError(
            f"{source} holds no pictures ({', '.join(sorted(PICTURES))}), tars or Parquet files: correct the source"
        )
    return _numbered("tar" if tars else "folder", root, found, given, refused, ignored)


def read_item(item: Item) -> bytes:
    """The encoded bytes of an item of a folder or tar."""
    with open(item.file, "rb") as stream:
        if item.offset < 0:
            return stream.read()
        stream.seek(item.offset)
        return stream.read(item.size)


def _numbered(
    kind: str, root: Path, found: list[Found], given: dict[str, str], refused: list[Skipped], ignored: int
) -> Source:
    by_split: dict[str, list[tuple[tuple[str, ...], Found]]] = {}
    for entry in sorted(found, key=lambda entry: entry.name):
        split, folders = _split_and_folders(entry.folders)
        by_split.setdefault(split, []).append((folders, entry))
    groups = {split: _groups(entries, given) for split, entries in by_split.items()}
    classes = tuple(sorted({group for names in groups.values() for group in names if group is not None}))
    numbers: dict[str | None, int] = {None: -1, **{name: index for index, name in enumerate(classes)}}
    splits: dict[str, list[Item]] = {}
    for split, entries in by_split.items():
        bare = [entry.name for (_, entry), group in zip(entries, groups[split], strict=True) if group is None]
        if 0 < len(bare) < len(entries):
            raise InputError(
                f"{root}: '{bare[0]}' has no class but other pictures of '{split}' have one: move it into a class folder, or away"
            )
        splits[split] = [
            Item(entry.name, numbers[group], entry.file, entry.offset, entry.size)
            for (_, entry), group in zip(entries, groups[split], strict=True)
        ]
    _check_classes(root, splits, classes)
    return Source(kind=kind, splits=splits, classes=classes, refused=refused, ignored=ignored)


def _groups(entries: list[tuple[tuple[str, ...], Found]], given: dict[str, str]) -> list[str | None]:
    """The class of each picture of a split: the first folder that tells pictures apart, or what the labels file says."""
    names = [PurePosixPath(entry.name) for _, entry in entries]
    folders = [folders for folders, _ in entries]
    while all(len(parts) > 1 for parts in folders) and len({parts[0] for parts in folders}) == 1:
        folders = [parts[1:] for parts in folders]
    return [
        given.get(name.name) or given.get(name.stem) or (parts[0] if parts else None)
        for name, parts in zip(names, folders, strict=True)
    ]


def _check_classes(root: Path, splits: dict[str, list[Item]], classes: tuple[str, ...]) -> None:
    trained = {item.label for item in splits.get("train", [])} - {-1}
    for split, items in splits.items():
        unknown = {item.label for item in items} - {-1} - trained
        if trained and split != "train" and unknown:
            raise InputError(
                f"{root}: '{split}' has the class '{classes[min(unknown)]}', 'train' has not: rename or remove it"
            )


def _files(root: Path) -> list[str]:
    """Files below `root` by their relative names, sorted; hidden ones left out. Linked folders are followed, each once."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            inner.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        prefix = os.path.relpath(folder, root)
        found += [name if prefix == "." else f"{prefix}/{name}" for name in names if not name.startswith(".")]
    return sorted(found)


def _in_folders(root: Path, files: list[str]) -> tuple[list[Found], int]:
    pictures = [name for name in files if PurePosixPath(name).suffix.lower() in PICTURES]

    found = [
        Found(PurePosixPath(name).parent.parts, name, str(root / name), -1, _size(root / name))
        for name in pictures
    ]
    return found, len(files) - len(pictures)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nowhere: reading it will fail too, and then it is listed with the reason
        return -1


def _split_and_folders(folders: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """("val", ("n01440764",)) of the folders above a picture; without a split's folder it is "train"."""
    for depth, folder in enumerate(folders):
        if folder.lower() in SPLITS:
            return SAME_SPLIT.get(folder.lower(), folder.lower()), folders[depth + 1 :]
    return "train", folders


def _in_tars(root: Path, tars: list[Path], scratch: Path, refused: list[Skipped]) -> tuple[list[Found], int]:
    found: list[Found] = []
    ignored = 0
    for path in tars:
        plain = _plain(path, scratch)
        inside = (
            PurePosixPath(path.relative_to(root).as_posix()) if root.is_dir() else PurePosixPath(path.name)
        )
        try:
            with plain.open("rb") as stream:
                members = list(_walk(stream, 0, plain.stat().st_size, (inside.name,), refused, str(inside)))
        except tarfile.TarError as error:
            raise InputError(f"{path} is not a whole tar ({error}): download or copy it again") from None
        if any(member.name.endswith(".cls") for member in members):
            raise InputError(
                f"{path} is a WebDataset tar (classes in .cls files), which is not read: unpack it into class folders"
            )
        pictures = [member for member in members if PurePosixPath(member.name).suffix.lower() in PICTURES]
        ignored += len(members) - len(pictures)
        # A class is a folder in the tar; where it holds none, each tar is a class, as in ImageNet's training set.
        by_folder = any(_split_and_folders(PurePosixPath(member.name).parent.parts)[1] for member in pictures)
        alone = len(tars) == 1
        for member in pictures:
            name = PurePosixPath(member.name)
            split_names, stems = _tar_names(member.tars, outer_is_class=not alone)
            folders = (*inside.parent.parts, *split_names, *(() if by_folder else stems), *name.parent.parts)
            if split_names and name.parts[0].lower() in SPLITS:
                folders = (*inside.parent.parts, *name.parent.parts)
            whole = "/".join([str(inside), *member.tars[1:], member.name])
            found.append(Found(folders, whole, str(plain), member.offset, member.size))
    return found, ignored


def _tar_names(tars: tuple[str, ...], *, outer_is_class: bool) -> tuple[list[str], list[str]]:
    """What the names of nested tars say: a split (ILSVRC2012_img_val.tar), else perhaps a class (n01440764.tar)."""
    splits: list[str] = []
    stems: list[str] = []
    for depth, tar in enumerate(tars):
        stem = tar.split(".")[0]
        words = [word.lower() for word in stem.replace("-", "_").split("_") if word.lower() in SPLITS]
        if words:
            splits = words[-1:]
        elif depth or outer_is_class:
            stems.append(stem)
    return splits, stems


class _Member(NamedTuple):
    tars: tuple[str, ...]  # the names of the tars it lies in, outermost first
    name: str
    offset: int  # in the outermost file
    size: int


def _walk(
    stream: BinaryIO, base: int, end: int, tars: tuple[str, ...], refused: list[Skipped], where: str
) -> Iterator[_Member]:
    """The regular files of the tar between `base` and `end`; tars in it are entered. Nothing is ever unpacked to disk."""
    stream.seek(base)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        members = archive.getmembers()
    for member in members:
        name = PurePosixPath(member.name)
        if member.isdir() or name.name.startswith("."):
            continue
        if (
            member.offset_data + member.size > end
        ):  # a tar within, without end marks: what follows it is not its own
            break
        reason = _unsafe(member, name)
        if reason:
            refused.append(Skipped("/".join([where, *tars[1:], member.name]), reason))
        elif name.suffix == ".tar":
            yield from _walk(
                stream,
                member.offset_data,
                member.offset_data + member.size,
                (*tars, name.name),
                refused,
                where,
            )
        else:
            yield _Member(tars, str(name), member.offset_data, member.size)


def _unsafe(member: tarfile.TarInfo, name: PurePosixPath) -> str | None:
    if name.is_absolute() or ".." in name.parts:
        return "points outside of its tar"
    if not member.isreg() or member.sparse is not None:
        return "is not a regular file"
    return None


def _plain(path: Path, scratch: Path) -> Path:
    """The tar itself, or its decompressed copy: pictures are read from any place of it, by many processes."""
    if path.suffix == ".tar":
        return path
    stat = path.stat()
    copy = scratch / f"{path.name}.{stat.st_size}.{stat.st_mtime_ns}.tar"
    if not copy.exists():
        try:
            with whole_file(copy) as temporary, gzip.open(path) as packed, temporary.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        except (EOFError, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is not whole ({error}): download or copy it again") from None
    return copy


def _is_tar(name: str) -> bool:
    return name.lower().endswith((".tar", ".tar.gz", ".tgz"))


def _read_labels(path: Path) -> dict[str, str]:
    """File name or stem → class, of a CSV; Kaggle's second column holds the class and boxes after it."""
    if not path.is_file():
        raise InputError(f"no labels at {path}: name a CSV file of file names and classes")
    with path.open(newline="") as stream:
        rows = [row for row in csv.reader(stream) if len(row) >= 2 and row[1].split()]
    if not rows:
        raise InputError(f"{path} holds no lines 'file,class'")
    return {row[0].strip(): row[1].split()[0] for row in rows}
