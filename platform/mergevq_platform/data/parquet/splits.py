"""The Parquet files of each split of a directory, by the names of files and folders."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

from mergevq.errors import InputError

SAME_SPLIT = {
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "eval": "val",
    "training": "train",
    "testing": "test",
}
NAMED = re.compile(
    r"(?:partial-)?(train|training|val|valid|validation|dev|eval|test|testing)(?:[-_.].*)?", re.IGNORECASE
)
NUMBERED = re.compile(r"\d+(?:-of-\d+)?")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # how Hive and Spark call the folder of a null


class SplitPath(NamedTuple):
    """The split that the name of a file says; `folder` is the part above it: a configuration, where there are several."""

    split: str
    folder: str
    known: bool  # whether a split's name was found, or follows from folders of values


def canonical(split: str) -> str:
    """The one name of a split that has several: val for validation or Valid, and the like."""
    lower = split.lower()
    return SAME_SPLIT.get(lower, lower if lower in SAME_SPLIT.values() else split)


def same_split(one: str, other: str) -> bool:
    """Whether two names mean one split: `training` is `train`, `validation` is `val`."""
    return canonical(one) == canonical(other)


def folder_values(file: str) -> dict[str, str | None]:
    """The values of folders such as label=0, as Hive and Spark lay them out; none for a null."""
    pairs = [part.partition("=") for part in PurePosixPath(file).parent.parts if "=" in part[1:]]
    return {key: None if value == NO_VALUE else unquote(value) for key, _, value in pairs}


def place_of(file: str) -> SplitPath:
    """The split of a file and the folder above it: train-00000-of-00010.parquet, train/0000.parquet, train.parquet."""
    path = PurePosixPath(file)
    parents = path.parent.parts
    for depth in range(len(parents), -1, -1):
        part = path.stem if depth == len(parents) else parents[depth]
        if depth < len(parents) and "=" in part[1:]:
            key, _, part = part.partition("=")
            if key.lower() != "split":
                continue
        if match := NAMED.fullmatch(part):
            return SplitPath(canonical(match[1]), _without_values(parents[:depth]), True)
    if folder_values(file):
        return SplitPath("train", _without_values(parents), True)
    # Files that are only numbered, 0000.parquet, are parts of one split, as the folder train/ of a set on the Hub holds them.
    split = "train" if NUMBERED.fullmatch(path.stem) else re.split(r"[-_.]\d", path.stem)[0]
    return SplitPath(split, _without_values(parents), False)


def shared_name(files: Iterable[str]) -> str | None:
    """The one name that all files bear where neither they nor their folders name a split; none for other sets."""
    places = [place_of(file) for file in files]
    names = {place.split for place in places}
    return names.pop() if len(names) == 1 and not any(place.known for place in places) else None


def files_by_split(name: str, files: Iterable[str]) -> dict[str, list[str]]:
    """The files of each split; where no file names one and all share a name, they are `train`.

    Raises `InputError` where a split lies in several folders: they may hold the same images.
    """
    files = list(files)
    if shared_name(files) is not None:
        return {"train": files}
    found: dict[str, list[str]] = {}
    folders: dict[str, dict[str, None]] = {}
    for file in files:
        place = place_of(file)
        found.setdefault(place.split, []).append(file)
        if place.known:
            folders.setdefault(place.split, {})[place.folder] = None
    for split, several in folders.items():
        if len(several) > 1:
            shown = ", ".join(folder or "." for folder in several)
            first = next(folder for folder in several if folder)
            raise InputError(
                f"{name} holds the configurations {shown}, each with the split '{split}': name one, {name}/{first}, "
                "or move the files of a split into one folder"
            )
    return found


def _without_values(parents: Iterable[str]) -> str:
    return "/".join(part for part in parents if "=" not in part[1:])
