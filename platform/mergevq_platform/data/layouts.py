"""The one decision of how a source is laid out: image files in folders, archives of them, or Parquet."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mergevq.errors import InputError
from mergevq_platform.data.archives import kind_of, named_as_archive
from mergevq_platform.data.endings import IMAGE_ENDINGS, ending, is_image
from mergevq_platform.data.found import Choices
from mergevq_platform.data.listing import listed
from mergevq_platform.data.shards import FORMAT, MANIFEST
from mergevq_platform.data.summary import HIDDEN, LeftOut
from mergevq_platform.data.unpacking import (
    ARCHIVE_ENDINGS,
    UNREADABLE,
    NotWhole,
    holds_images_or_archives,
)

SYSTEM_FILES = {"thumbs.db", "desktop.ini"}


@dataclass
class Contents:
    """The files of a source by what they are, by their names from its root."""

    images: list[str] = field(default_factory=list)
    archives: dict[str, str] = field(default_factory=dict)  # name → kind
    parquet: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)


def contents_of(root: Path) -> Contents:
    """What lies at `root`, a folder or one file."""
    found = Contents()
    if root.is_file():
        _sort(root, root.name, found)
        return found
    files, hidden = listed(root)
    for name in hidden:
        found.left_out.add(HIDDEN, name)
    for name in files:
        if name.rpartition("/")[2].lower() in SYSTEM_FILES:
            found.left_out.add(HIDDEN, name)
        else:
            _sort(root / name, name, found)
    return found


def _sort(path: Path, name: str, found: Contents) -> None:
    if ending(name) == ".parquet":
        found.parquet.append(name)
    elif is_image(path):
        found.images.append(name)
    elif (named_as_archive(name) or not ending(name)) and (kind := kind_of(path)):
        found.archives[name] = kind
    else:
        found.others.append(name)


def is_packed(root: Path) -> bool:
    """Whether a folder holds a set of ours, by its manifest."""
    try:
        return json.loads((root / MANIFEST).read_text()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        return False


def layout_of(source: str, root: Path, found: Contents, choices: Choices) -> str:
    """ "folders", "archives" or "parquet": where the images of a source are. The rest is counted as left out.

    Raises `InputError` where there are none, and where they are in two places and `choices` name none.
    """
    holders = _holders(root, found, choices)
    chosen = {"flat": "folders", "webdataset": "archives"}.get(choices.layout or "", choices.layout)
    if choices.layout == "flat" and "folders" not in holders and "archives" in holders:
        chosen = "archives"
    if chosen is None:
        if not holders:
            raise InputError(f"{source} holds no images ({_what(found)}): {_fix(found)}")
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
    _leave_out(root, found, chosen, holders)
    return chosen


def _holders(root: Path, found: Contents, choices: Choices) -> dict[str, tuple[str, str]]:
    """Where there are images: what it is, for people, and an example."""
    holders: dict[str, tuple[str, str]] = {}
    if is_packed(root):
        return {"parquet": ("a packed set", MANIFEST)}
    if found.images:
        holders["folders"] = (f"{len(found.images):,} image files", found.images[0])
    readable = [name for name, kind in found.archives.items() if kind not in UNREADABLE]
    alone = not found.images and not found.parquet
    filled = readable if alone else [n for n in readable if _archive_holds(root / n, found.archives[n])]
    if filled:
        holders["archives"] = (f"{len(filled):,} archives with images", filled[0])
    with_images = [name for name in found.parquet if _parquet_holds(root / name)]
    if with_images or (found.parquet and not holders):
        first = (with_images or found.parquet)[0]
        holders["parquet"] = (f"{len(found.parquet):,} Parquet files with images", first)
    return holders


def _archive_holds(path: Path, kind: str) -> bool:
    try:
        return holds_images_or_archives(path, kind, IMAGE_ENDINGS | ARCHIVE_ENDINGS)
    except NotWhole:
        return False


def _parquet_holds(path: Path) -> bool:
    """Whether a Parquet file has a column that may hold encoded images."""
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return False
    return any(_encoded(item.type) for item in schema)


def _encoded(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _encoded(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _leave_out(root: Path, found: Contents, chosen: str, holders: dict[str, tuple[str, str]]) -> None:
    for name in found.others:
        found.left_out.by_ending(name)
    for name in found.images if chosen != "folders" else []:
        found.left_out.add("image files", name)
    for name in found.parquet if chosen != "parquet" else []:
        what = "Parquet files" + ("" if _parquet_holds(root / name) else " without images")
        found.left_out.add(what, name)
    for name, kind in found.archives.items():
        if kind in UNREADABLE:
            found.left_out.add(f"{kind} archives, which are not read", name)
        elif chosen != "archives":
            found.left_out.add(f"archives{_what_of(root / name, kind)}", name)


def _what_of(path: Path, kind: str) -> str:
    try:
        holds = holds_images_or_archives(path, kind, IMAGE_ENDINGS | ARCHIVE_ENDINGS)
    except NotWhole:
        return " that are not whole"
    return " with images" if holds else " without images"


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
    return ", ".join(f"{item.count:,} {item.reason}" for item in unused[:3]) or "no files at all"


def _fix(found: Contents) -> str:
    if any(kind in UNREADABLE for kind in found.archives.values()):
        return "unpack them first"
    return "name a folder of images, of tars or zips, or of Parquet files"
