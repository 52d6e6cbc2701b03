"""Writing a checkpoint, and keeping the newest of a run in its storage."""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from pathlib import Path

import pyarrow.fs
import torch
import yaml

from mergevq.config import to_tree
from mergevq.files import write_whole
from mergevq_platform.recipe import Recipe, ResolvedRecipe
from mergevq_platform.storage.checkpoints.listing import ABOUT, candidates
from mergevq_platform.storage.checkpoints.reading import sha256
from mergevq_platform.storage.checkpoints.state import TrainingState
from mergevq_platform.storage.locations import open_storage

FORMAT = 1


def write(directory: Path, state: TrainingState, recipe: ResolvedRecipe, *, fingerprint: str) -> None:
    """Write a complete checkpoint into `directory` (made if need be)."""
    directory.mkdir(parents=True, exist_ok=True)
    state.training.export(state.ema.averaged, directory)
    (directory / "recipe.yaml").write_text(recipe_yaml(recipe))
    torch.save(state.state_dict(), directory / "resume.pt")
    files = sorted(path for path in directory.iterdir() if path.name != ABOUT)
    about = {
        "format": FORMAT,
        "step": state.step,
        "task": recipe.task.kind,
        "data_fingerprint": fingerprint,
        "torch": torch.__version__,
        "sha256": {path.name: sha256(path) for path in files},
    }
    write_whole(directory / ABOUT, json.dumps(about, indent=1))


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(to_tree(recipe), sort_keys=False, width=120)


def keep(directory: Path, run: str, *, most: int) -> None:
    """Bring the complete checkpoint in `directory` into `run`, a directory or URI, then drop all but the newest `most` there.

    Raises `OSError` while the storage is full or gone. Gone is also a directory without the run's recipe: the mount
    point of a file system that is not mounted any more must not be taken for it.
    """
    filesystem, root = open_storage(run)
    if filesystem.get_file_info(f"{root}/recipe.yaml").type != pyarrow.fs.FileType.File:
        raise FileNotFoundError(errno.ENOENT, "no such run there any more", root)
    bring(directory, run)
    older = [place for place in candidates(filesystem, root) if place != f"{root}/{directory.name}"]
    for place in older[most - 1 :]:
        with suppress(OSError):  # it goes with the next one
            filesystem.delete_dir(place)


def bring(directory: Path, run: str) -> None:
    """Copy the complete checkpoint in `directory` into `run`, a directory or URI.

    checkpoint.json comes last, so that a copy that was cut short is no checkpoint; what was copied of it is removed again.
    Raises `OSError` while the storage is full or gone.
    """
    filesystem, root = open_storage(run)
    target = f"{root}/{directory.name}"
    marker = f"{target}/checkpoint.json"
    try:
        if filesystem.get_file_info(marker).type == pyarrow.fs.FileType.File:
            filesystem.delete_file(marker)
        filesystem.create_dir(target)
        for path in sorted(directory.iterdir()):
            if path.name != ABOUT:
                _upload(path, filesystem, f"{target}/{path.name}")
        _upload(directory / ABOUT, filesystem, f"{target}/.checkpoint.json")
        filesystem.move(f"{target}/.checkpoint.json", marker)
    except OSError:
        with suppress(OSError):
            filesystem.delete_dir(target)
        raise


def _upload(source: Path, filesystem: pyarrow.fs.FileSystem, target: str) -> None:
    # Several threads at once have been seen to hang on S3 (apache/arrow#32372).
    pyarrow.fs.copy_files(str(source), target, destination_filesystem=filesystem, use_threads=False)
