"""The images in archives: of class folders, of an archive for each class, or of WebDataset samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mergevq.errors import InputError
from mergevq_platform.data.images.endings import ending
from mergevq_platform.data.parquet.columns import NO_LABELS
from mergevq_platform.data.sources.archives import Member, Report, members
from mergevq_platform.data.sources.choices import Choices, SourceImage, SourceImages
from mergevq_platform.data.sources.folder_levels import NO_SPLITS, Folders, split_in, split_named
from mergevq_platform.data.sources.listing import readable
from mergevq_platform.data.sources.summary import counted
from mergevq_platform.data.sources.unpacking import ARCHIVE_ENDINGS
from mergevq_platform.data.sources.webdataset import are_numbers, sample_images, says_webdataset

_SHARD = re.compile(r"\d{5,}|.*[-_]\d{4,}")


def in_archives(archives: Sequence[tuple[Path, str]], choices: Choices, scratch: Path) -> SourceImages:
    """The images of archives, each given with its name from the source's root. Compressed ones are copied to `scratch`.

    Raises `InputError` for archives that are damaged, or hold the same under two endings.
    """
    archives = [(path, readable(name)) for path, name in archives]
    _refuse_twins([name for _, name in archives])
    report = Report()
    contents = [list(members(path, name, scratch, report)) for path, name in archives]
    collected = SourceImages("", [], left_out=report.left_out, refused=report.refused, kind="tar")
    for name, size in report.unpacked:
        collected.notes.append(
            ("unpacked", f"{name}: a plain copy of {size / 1e6:,.1f} MB while it is packed")
        )
    if report.refused:
        first = report.refused[0]
        collected.notes.append(
            ("refused", f"{counted(len(report.refused), 'member')} ({first.file} {first.reason})")
        )
    everything = [member for content in contents for member in content]
    by_folder = _told_by_folders(everything)
    web = choices.layout == "webdataset" or (
        choices.layout is None
        and (
            any(ending(member.name) == ".cls" for member in everything)
            or (not by_folder and says_webdataset(m for m in everything if len(m.inside) == 1))
        )
    )
    if web:
        _webdataset(archives, contents, choices, collected)
    else:
        _class_folders(archives, contents, choices, collected)
    return collected


def _webdataset(
    archives: Sequence[tuple[Path, str]],
    contents: Sequence[list[Member]],
    choices: Choices,
    collected: SourceImages,
) -> None:
    collected.layout = "WebDataset archives"
    column = choices.reading.label_column
    for (_, name), content in zip(archives, contents, strict=True):
        place = PurePosixPath(name)
        split = [] if choices.splits == (NO_SPLITS,) else [split_in(_stem(place.name))]
        folders = (*place.parent.parts, *(word for word in split if word))
        collected.images += [
            found._replace(folders=folders) for found in sample_images(content, column, collected)
        ]
    classes = [found.own_class for found in collected.images]
    collected.numbers = are_numbers(classes)
    bare = [found.name for found in collected.images if found.own_class is None]
    told = f"'{column}' of the .json members" if column not in (None, "cls") else "the .cls members"
    if len(bare) == len(classes):
        if column not in (None, NO_LABELS) and classes:
            raise InputError(f"no member holds a label '{column}' beside an image: correct --label-column")
        collected.notes.append(("labels", "none" if column == NO_LABELS else "none: no .cls members"))
    else:
        lacking = f"; {counted(len(bare), 'image')} without one ({bare[0]})" if bare else ""
        collected.notes.append(("labels", f"{told}{lacking}"))


def _class_folders(
    archives: Sequence[tuple[Path, str]],
    contents: Sequence[list[Member]],
    choices: Choices,
    collected: SourceImages,
) -> None:
    collected.layout = "archives of class folders"
    alone = len(archives) == 1
    levels = [
        _levels(name, content, alone, choices) for (_, name), content in zip(archives, contents, strict=True)
    ]
    # An archive is a class, as in ImageNet's training set, where no folders in the archives of its split tell images apart.
    inner: dict[Folders, set[Folders]] = {}
    stems: dict[Folders, set[Folders]] = {}
    for entry in chain.from_iterable(levels):
        inner.setdefault(entry.above, set()).add(entry.within)
        stems.setdefault(entry.above, set()).add(entry.stems)
    shards = {
        above
        for above, each in stems.items()
        if choices.layout is None
        and any(each)
        and all(_SHARD.fullmatch(name) for names in each for name in names)
    }
    for member, above, names, within in chain.from_iterable(levels):
        told_within = bool(within) and (len(inner[above]) > 1 or len(stems[above]) == 1)
        kept = () if told_within or above in shards else names
        if kept:
            collected.layout = "an archive for each class"
        elif above in shards and not within:
            collected.layout = "numbered archives of images without classes (--layout archives: each a class)"
        folders = (*above, *kept, *within)
        collected.images.append(
            SourceImage(folders, member.whole_name, member.name, member.file, member.offset, member.size)
        )
    for content in contents:
        for member in content:
            if not member.image:
                collected.left_out.by_ending(member.whole_name)


class _Levels(NamedTuple):
    member: Member
    above: Folders  # the folders above the archive, and the split that it is called after
    stems: Folders  # the names of archives that may be classes
    within: Folders  # the folders in the innermost archive


def _levels(name: str, content: Sequence[Member], alone: bool, choices: Choices) -> list[_Levels]:
    images = [member for member in content if member.image]
    no_splits = choices.splits == (NO_SPLITS,)
    within = [PurePosixPath(member.name).parent.parts for member in images]
    told_within = not no_splits and all(parts and split_named(parts[0]) for parts in within)
    entries = []
    for member, folders in zip(images, within, strict=True):
        splits: list[str] = []
        stems: list[str] = []
        for depth, archive in enumerate(member.inside):
            stem = _stem(archive)
            if not no_splits and (split := split_in(stem)):
                splits = [split]
            elif depth or not alone:
                stems.append(stem)
        if told_within:
            splits = []
        above = (*PurePosixPath(name).parent.parts, *splits)
        entries.append(_Levels(member, above, tuple(stems), folders))
    return entries


def _told_by_folders(everything: Sequence[Member]) -> bool:
    folders = {PurePosixPath(member.name).parent.parts for member in everything if member.image}
    return len({parts[1:] if parts and split_named(parts[0]) else parts for parts in folders}) > 1


def _refuse_twins(names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        stem = str(PurePosixPath(name).with_name(_stem(PurePosixPath(name).name)))
        if stem in seen:
            raise InputError(
                f"{seen[stem]} and {name} are perhaps the same archive twice: take one of them away"
            )
        seen[stem] = name


def _stem(archive: str) -> str:
    """The name of an archive without its endings: n01 of n01.tar.gz."""
    path = PurePosixPath(archive)
    while path.suffix.lower() in ARCHIVE_ENDINGS:
        path = path.with_suffix("")
    return path.name
