"""The one decision of how a source is laid out: image files in folders, archives of them, or Parquet."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mergevq.errors import InputError
from mergevq_platform.data.images.endings import IMAGE_ENDINGS, ending, is_image
from mergevq_platform.data.parquet.columns import bytes_field
from mergevq_platform.data.parquet.location import is_hidden_parquet
from mergevq_platform.data.parquet.manifest import FORMAT, MANIFEST
from mergevq_platform.data.parquet.splits import place_of
from mergevq_platform.data.sources.archives import kind_of, named_as_archive
from mergevq_platform.data.sources.choices import Choices
from mergevq_platform.data.sources.listing import listed
from mergevq_platform.data.sources.summary import EMPTY, HIDDEN, LeftOut, counted
from mergevq_platform.data.sources.unpacking import (
    ARCHIVE_ENDINGS,
    UNREADABLE,
    NotWhole,
    holds_images_or_archives,
)

MERELY_COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}  # perhaps of no archive
_PIECE = re.compile(
    r"\.(\d{3}|z\d\d|part[a-z0-9]*)"
)  # of an archive that was cut: x.zip.001, x.z01, x.tar.partaa
WITH_IMAGES = "with images"
SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


@dataclass
class Contents:
    """The files of a source by what they are, by their names from its root."""

    images: list[str] = field(default_factory=list)
    archives: dict[str, str] = field(default_factory=dict)  # name → kind
    parquet: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    root: Path = Path()
    _archives: dict[str, str] = field(default_factory=dict)
    _parquet: dict[str, bool] = field(default_factory=dict)

    def in_archive(self, name: str) -> str:
        """The content of an archive, told without unpacking it: "with images", "without images" or "that are not whole"."""
        if name not in self._archives:
            self._archives[name] = _looked_into(self._path(name), self.archives[name])
        return self._archives[name]

    def parquet_holds(self, name: str) -> bool:
        """Whether a Parquet file has a column that may hold encoded images."""
        if name not in self._parquet:
            self._parquet[name] = _parquet_holds(self._path(name))
        return self._parquet[name]

    def _path(self, name: str) -> Path:
        return self.root if self.root.is_file() else self.root / name


def contents_of(root: Path, labels: Path | None = None) -> Contents:
    """The layouts at `root`, a folder or one file. A labels file that lies there is none of the others."""
    found = Contents(root=root)
    if root.is_file():
        _sort(root, root.name, found)
        return found
    listing = listed(root)
    for name in listing.hidden:
        found.left_out.add(HIDDEN, name)
    for name in listing.empty:
        found.left_out.add(EMPTY, name)
    for name in listing.files:
        if name.rpartition("/")[2].lower() in SYSTEM_FILES:
            found.left_out.add(HIDDEN, name)
        elif labels is None or not _same(root / name, labels):
            _sort(root / name, name, found)
    return found


def _same(path: Path, labels: Path) -> bool:
    return path.name == labels.name and path.resolve() == labels.expanduser().resolve()


def _sort(path: Path, name: str, found: Contents) -> None:
    if ending(name) == ".parquet":
        if any(map(is_hidden_parquet, name.split("/"))):
            found.left_out.add(HIDDEN, name)
        else:
            found.parquet.append(name)
    elif is_image(path):
        found.images.append(name)
    elif (named_as_archive(name) or not ending(name)) and (kind := kind_of(path)):
        found.archives[name] = kind
    elif named_as_archive(name) and ending(name) not in MERELY_COMPRESSED:
        found.left_out.add("archives that are not whole", name)
    else:
        found.others.append(name)


def is_packed(root: Path) -> bool:
    """Whether a folder holds a set of ours, by its manifest."""
    try:
        return json.loads((root / MANIFEST).read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def layout_of(source: str, found: Contents, choices: Choices) -> str:
    """ "folders", "archives" or "parquet": where the images of a source are. The rest is counted as left out.

    Raises `InputError` where there are none, and where they are in two places and `choices` name none.
    """
    holders = _holders(found)
    chosen = {"flat": "folders", "webdataset": "archives"}.get(choices.layout or "", choices.layout)
    if choices.layout == "flat" and "folders" not in holders and "archives" in holders:
        chosen = "archives"
    if chosen is None:
        if not holders:
            raise _no_images(source, found)
        if len(holders) > 1:
            (first, (what, one)), (second, (other, another)) = list(holders.items())[:2]
            raise InputError(
                f"{source} holds {what} ({one}) and {other} ({another}): --layout {first} or --layout {second} says which to take"
            )
        chosen = next(iter(holders))
    elif chosen not in holders:
        raise InputError(
            f"{source} holds no images for --layout {choices.layout} ({_what(found)}): correct --layout"
        )
    _leave_out(found, chosen)
    return chosen


def require_parquet(source: str, found: Contents) -> None:
    """Raise `InputError` where the images of `source` are not in Parquet, which is all that is read in place."""
    holders = _holders(found)
    if "parquet" in holders:
        _leave_out(found, "parquet")
    elif holders:
        what, example = next(iter(holders.values()))
        raise InputError(
            f"{source} holds {what} ({example}), which are not packed: use DIR of `mergevq data pack {shlex.quote(source)} DIR`"
        )
    else:
        raise _no_images(source, found)


def _no_images(source: str, found: Contents) -> InputError:
    return InputError(f"{source} holds no images ({_what(found)}): {_fix(found)}")


def _holders(found: Contents) -> dict[str, tuple[str, str]]:
    """The places that hold images: their kind in words, and an example."""
    holders: dict[str, tuple[str, str]] = {}
    if is_packed(found.root):
        return {"parquet": ("a packed set", MANIFEST)}
    if found.images:
        holders["folders"] = (counted(len(found.images), "image file"), found.images[0])
    readable = [name for name, kind in found.archives.items() if kind not in UNREADABLE]
    alone = not found.images and not found.parquet
    filled = readable if alone else [name for name in readable if found.in_archive(name) == WITH_IMAGES]
    if filled:
        holders["archives"] = (f"{counted(len(filled), 'archive')} with images", filled[0])
    # The first that holds some will do: a set may have thousands of files, and every training asks.
    first = next((name for name in found.parquet if found.parquet_holds(name)), None)
    if first is None and not holders:
        first = next(iter(found.parquet), None)
    if first is not None:
        holders["parquet"] = (f"{counted(len(found.parquet), 'Parquet file')} with images", first)
    return holders


def _parquet_holds(path: Path) -> bool:
    """Whether a Parquet file has a column that may hold encoded images."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return False
    return any(bytes_field(item.type) is not None for item in schema)


def _leave_out(found: Contents, chosen: str) -> None:
    for name in found.others:
        found.left_out.by_ending(name)
    for name in found.images if chosen != "folders" else []:
        found.left_out.add("image files", name)
    for name in found.parquet if chosen != "parquet" else _without_images(found):
        what = "Parquet files" + ("" if found.parquet_holds(name) else " without images")
        found.left_out.add(what, name)
    for name, kind in found.archives.items():
        if kind in UNREADABLE:
            found.left_out.add(f"{kind} archives, which are not read", name)
        elif chosen != "archives":
            found.left_out.add(f"archives {found.in_archive(name)}", name)


def _without_images(found: Contents) -> list[str]:
    """The files of splits of Parquet files of which the first, at least, holds no images."""
    splits: dict[str, list[str]] = {}
    for name in [] if is_packed(found.root) else found.parquet:
        splits.setdefault(place_of(name).split, []).append(name)
    tables = [name for names in splits.values() if not found.parquet_holds(names[0]) for name in names]
    return [name for name in tables if not found.parquet_holds(name)]


def _looked_into(path: Path, kind: str) -> str:
    try:
        holds = holds_images_or_archives(path, kind, IMAGE_ENDINGS | ARCHIVE_ENDINGS)
    except NotWhole:
        return "that are not whole"
    return WITH_IMAGES if holds else "without images"


def _what(found: Contents) -> str:
    counted = LeftOut()
    for name in found.others:
        counted.by_ending(name)
    for name, kind in found.archives.items():
        counted.add(f"{kind} archives", name)
    for name in found.parquet:
        counted.add("Parquet files", name)
    for name in found.images:
        counted.add("image files", name)
    unused = [*counted.unused(), *found.left_out.unused()]
    return ", ".join(f"{item.reason}: {item.count:,}" for item in unused[:3]) or "no files at all"


def _fix(found: Contents) -> str:
    if any(kind in UNREADABLE for kind in found.archives.values()):
        return "unpack them first"
    if any(_PIECE.fullmatch(ending(name)) for name in found.others):
        return "join the pieces to one archive, or unpack them"
    if any(ending(name) == ".arrow" for name in found.others):
        return "write them as Parquet, as `to_parquet` of `datasets` does"
    return "name a folder of images, of tars or zips, or of Parquet files"
