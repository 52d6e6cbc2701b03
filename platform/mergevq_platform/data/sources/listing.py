"""The files below a folder: the one way of listing them, whoever asks."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from mergevq.errors import InputError

# What network drives, desktops and file systems keep beside a user's files: thumbnails, bins, notes. In lower case.
SYSTEM_FOLDERS = frozenset(
    {
        "@eadir",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "system volume information",
        "__macosx",
        "lost+found",
    }
)


class Listing(NamedTuple):
    """Files below a folder by their relative names, sorted; `/` between folders."""

    files: list[str]
    hidden: list[str]  # files and folders that `is_hidden`, pipes and devices; such folders are not entered
    empty: list[str]  # folders that hold nothing, hidden files aside


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name, without those above it, is none of a user's: .x, or a system's own folder."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def readable(name: str) -> str:
    """A name that can be shown and stored: bytes of it that are no UTF-8 are written as \\xff."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def listed(root: str | Path) -> Listing:
    """The files below `root`. Links to folders are followed, wherever they stand; one that leads back above itself is not.

    Raises `InputError` naming a folder that cannot be listed.
    """
    found = Listing([], [], [])
    _list(str(root), "", (), found)
    return Listing(*map(sorted, found))


def _list(folder: str, prefix: str, above: tuple[tuple[int, int], ...], found: Listing) -> None:
    try:
        status = os.stat(folder)
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(
            f"{folder} cannot be listed ({(error.strerror or str(error)).lower()}): correct its permissions"
        ) from None
    place = (status.st_dev, status.st_ino)
    if place in above:
        return
    if prefix and all(is_hidden(entry.name) for entry in entries):
        found.empty.append(prefix.rstrip("/"))
    for entry in entries:
        name = prefix + entry.name
        if is_hidden(entry.name):
            found.hidden.append(name)
        elif _is_folder(entry):
            _list(entry.path, f"{name}/", (*above, place), found)
        elif _is_special(entry):
            found.hidden.append(name)
        else:
            found.files.append(name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it will fail, and then it is listed with the reason
        return False


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Whether it is a pipe, a socket or a device: reading it may never end."""
    try:
        return not entry.is_file() and not stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False
