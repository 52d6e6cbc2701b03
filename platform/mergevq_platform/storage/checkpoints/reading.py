"""Opening a checkpoint: the files that are asked for, checked against their hashes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch
import yaml

from mergevq.errors import InputError
from mergevq.hub import on_hub
from mergevq.serialization import WEIGHTS
from mergevq.weights_file import file_sha256 as sha256
from mergevq_platform.recipe import ResolvedRecipe, parse_resolved
from mergevq_platform.storage.checkpoints.listing import ABOUT, candidates
from mergevq_platform.storage.checkpoints.state import TrainingState
from mergevq_platform.storage.hub import checkpoint_folder
from mergevq_platform.storage.locations import local_path, open_storage

# The files that a reader wants. Only who goes on training wants resume.pt, which is several times the model.
RECIPE = ("recipe.yaml",)
CONFIG = ("config.json",)
MODEL = ("config.json", WEIGHTS, "recipe.yaml")
RESUME = ("resume.pt",)


def _warn(problem: str) -> None:
    print(f"warning: {problem}", flush=True)


@contextmanager
def newest(
    run: str, say: Callable[[str], None] = _warn, *, files: Collection[str] | None = None
) -> Iterator[Path]:
    """A local directory with the newest whole checkpoint of `run`: a run directory, a checkpoint, a URI of either, or the Hub's.

    Only `files` (such as `RECIPE`, `MODEL`, `RESUME`; None: all) are hashed and, where the checkpoint is remote, copied to a
    temporary folder for the length of the context. Where one is corrupt, the checkpoint before is taken, and `say` is told.
    Raises `InputError` if there is none.
    """
    filesystem, root = open_storage(checkpoint_folder(run) if on_hub(run) else run)
    problems: list[str] = []
    for path in candidates(filesystem, root):
        with _local(filesystem, path) as local:
            try:
                if local != Path(path):
                    _download(filesystem, path, local, files)
                verify(local, files)
            except InputError as error:
                problems.append(str(error))
                continue
            for problem in problems:
                say(f"{problem}; falling back to {path}")
            yield local
            return
    detail = f" ({problems[0]})" if problems else ""
    raise InputError(
        f"no checkpoint in '{run}'{detail}: give a run directory, a checkpoint directory or a URI"
    )


def is_bare(place: str) -> bool:
    """Whether `place` is a directory, here or on the Hub, with a tokenizer alone, such as `mergevq import-official` writes."""
    directory = _directory(place)
    return (directory / "config.json").is_file() and not (directory / ABOUT).is_file()


@contextmanager
def weights(place: str, *, files: Collection[str] = MODEL) -> Iterator[Path]:
    """A local directory that `mergevq.load` reads: of a run, a checkpoint, a URI of either, or a tokenizer alone.

    `files`: see `newest`.
    """
    if is_bare(place):
        yield _directory(place)
    else:
        with newest(place, files=files) as directory:
            yield directory


def _directory(place: str) -> Path:
    return checkpoint_folder(place) if on_hub(place) else local_path(place)


def about(directory: Path) -> dict[str, Any]:
    """The contents of checkpoint.json. Raises `InputError` if `directory` is not a whole checkpoint."""
    path = directory / ABOUT
    if not path.is_file():
        raise InputError(f"{directory} is not a checkpoint: it has no checkpoint.json")
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise InputError(
            f"checkpoint file {path} is corrupt (it is not JSON): use an earlier checkpoint of the run"
        ) from None


def weights_sha256(directory: Path) -> str:
    """The sha256 of the weights in a directory that `weights` opened: recorded, which they were checked against, or computed."""
    known = {} if is_bare(str(directory)) else about(directory)["sha256"]
    return known.get(WEIGHTS) or sha256(directory / WEIGHTS)


def verify(directory: Path, files: Collection[str] | None = None) -> None:
    """Check these files (none: every one) against their recorded sha256. Raises `InputError` naming the first that differs."""
    for name, expected in about(directory)["sha256"].items():
        if files is not None and name not in files:
            continue
        path = directory / name
        if not path.is_file():
            raise InputError(f"checkpoint {directory} lacks {name}: use an earlier checkpoint of the run")
        if sha256(path) != expected:
            raise InputError(
                f"checkpoint file {path} is corrupt (its sha256 differs): use an earlier checkpoint of the run"
            )


def recipe_of(directory: Path) -> ResolvedRecipe:
    """The resolved recipe that a checkpoint was trained with."""
    path = directory / "recipe.yaml"
    if not path.is_file():
        raise InputError(f"{directory} has no recipe.yaml: give a checkpoint written by mergevq train")
    return parse_resolved(yaml.safe_load(path.read_text()))


def restore(directory: Path, state: TrainingState) -> None:
    """Load a checkpoint into `state`. Raises `InputError` if resume.pt is missing or its checksum is wrong."""
    verify(directory, RESUME)
    device = next(state.training.parameters()).device
    saved = torch.load(directory / "resume.pt", map_location=device, weights_only=True)
    state.load_state_dict(saved)


@contextmanager
def _local(filesystem: pyarrow.fs.FileSystem, path: str) -> Iterator[Path]:
    """The directory of the checkpoint, or an empty temporary folder for a remote one."""
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="mergevq-checkpoint-") as temporary:
        target = Path(temporary) / Path(path).name
        target.mkdir()
        yield target


def _download(
    filesystem: pyarrow.fs.FileSystem, path: str, target: Path, files: Collection[str] | None
) -> None:
    def fetch(name: str) -> None:
        pyarrow.fs.copy_files(f"{path}/{name}", str(target / name), source_filesystem=filesystem)

    fetch(ABOUT)
    for name in about(target)["sha256"]:
        if files is None or name in files:
            with suppress(FileNotFoundError):  # for `verify` to say
                fetch(name)
