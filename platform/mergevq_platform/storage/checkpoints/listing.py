"""The checkpoints of a run: names by step, newest first."""

from __future__ import annotations

import pyarrow.fs

from mergevq.errors import InputError
from mergevq.hub import on_hub
from mergevq_platform.storage.hub import (  # written last: with it a directory is a whole checkpoint
    ABOUT,
    checkpoint_folder,
)
from mergevq_platform.storage.locations import inside, open_storage

PREFIX = "checkpoint_"


def directory_name(step: int) -> str:
    """The name of the checkpoint after `step` optimizer steps; names sort by step."""
    return f"{PREFIX}{step:09d}"


def step_of(place: str) -> int:
    """The optimizer step in the name of a checkpoint's directory or URI."""
    return int(place.partition("?")[0].rstrip("/").rpartition(PREFIX)[2])


def listed(run: str) -> list[str]:
    """Locations of the whole checkpoints of a run, newest first; of a checkpoint, itself."""
    if on_hub(run):
        return [run] if (checkpoint_folder(run) / ABOUT).is_file() else []
    filesystem, root = open_storage(run)
    found = candidates(filesystem, root)
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return found
    return [inside(run, path.removeprefix(root)) for path in found]


def at_step(run: str, step: int) -> str:
    """The location of the whole checkpoint after `step` optimizer steps; of a checkpoint, itself. Raises `InputError` if gone."""
    for location in listed(run):
        name = location.partition("?")[0].rpartition("/")[2]
        if (
            on_hub(run) or name == directory_name(step) or not name.startswith(PREFIX)
        ):  # a checkpoint may have been renamed
            return location
    raise InputError(f"'{run}' has no checkpoint of step {step} any more: name a later one")


def candidates(filesystem: pyarrow.fs.FileSystem, root: str) -> list[str]:
    """Paths of the whole checkpoints below `root`, newest first; `root` itself where it is one."""
    if filesystem.get_file_info(f"{root}/{ABOUT}").type == pyarrow.fs.FileType.File:
        return [root]
    listing = filesystem.get_file_info(pyarrow.fs.FileSelector(root, allow_not_found=True))
    found = [
        info.path
        for info in listing
        if info.type == pyarrow.fs.FileType.Directory
        and info.base_name.startswith(PREFIX)
        and filesystem.get_file_info(f"{info.path}/{ABOUT}").type == pyarrow.fs.FileType.File
    ]
    return sorted(found, reverse=True)
