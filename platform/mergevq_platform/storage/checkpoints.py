"""Checkpoints: one directory that is both the exported model and everything needed to go on.

    config.json, model.safetensors   the model with its averaged (EMA) weights: `mergevq.load(directory)`
    recipe.yaml                      the resolved recipe
    resume.pt                        parameters, EMA, optimizers, averages, loss scale (read with weights_only)
    checkpoint.json                  step, what was trained, the data's fingerprint, sha256 of every file above

`checkpoint.json` is written last: a directory without it is not a checkpoint.
"""

from __future__ import annotations

import errno
import hashlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.fs
import torch
import yaml

from mergevq.config import to_tree
from mergevq.ema import Ema
from mergevq.errors import InputError
from mergevq.training.protocol import Training
from mergevq_platform.recipe import Recipe, ResolvedRecipe, parse_resolved
from mergevq_platform.storage.files import write_whole

FORMAT = 1
PREFIX = "checkpoint_"
ABOUT = "checkpoint.json"  # written last: a directory with it is a whole checkpoint
# What a reader takes of a checkpoint; only who goes on training takes all of it, which is several times the model.
RECIPE = ("recipe.yaml",)
CONFIG = ("config.json",)
MODEL = ("config.json", "model.safetensors", "recipe.yaml")


@dataclass
class TrainingState:
    """All that changes while training; every other thing is a function of the recipe and the step."""

    training: Training
    ema: Ema
    optimizers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler | None = None
    step: int = 0  # optimizer steps done
    bad_images: list[int] = field(default_factory=list)  # rows that could not be decoded, of all ranks

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads with `weights_only=True`."""
        return {
            "step": self.step,
            "training": self.training.resume_state(),
            "ema": self.ema.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "bad_images": self.bad_images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Strict: raises if anything is missing or unknown."""
        self.step = state["step"]
        self.training.load_resume_state(state["training"])
        self.ema.load_state_dict(state["ema"])
        assert state["optimizers"].keys() == self.optimizers.keys()
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        # Earlier checkpoints call them otherwise, or hold none.
        self.bad_images = state.get("bad_images", state.get("bad_pictures", []))
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def directory_name(step: int) -> str:
    """The name of the checkpoint after `step` optimizer steps; names sort by step."""
    return f"{PREFIX}{step:09d}"


def step_of(place: str) -> int:
    """The optimizer step in the name of a checkpoint's directory or URI."""
    return int(place.partition("?")[0].rstrip("/").rpartition(PREFIX)[2])


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


def restore(directory: Path, state: TrainingState) -> None:
    """Load a checkpoint into `state`. Raises `InputError` if a file is missing or its checksum is wrong."""
    verify(directory)
    device = next(state.training.parameters()).device
    saved = torch.load(directory / "resume.pt", map_location=device, weights_only=True)
    state.load_state_dict(saved)


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


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(to_tree(recipe), sort_keys=False, width=120)


def keep(directory: Path, run: str, *, most: int) -> None:
    """Copy the complete checkpoint in `directory` into `run`, a directory or URI, then drop all but the newest `most` there.

    checkpoint.json comes last, so that a copy that was cut short is no checkpoint; what was copied of it is removed again.
    Raises `OSError` while the storage is full or gone. Gone is also a directory without the run's recipe: the place
    where a file system is not mounted any more must not be taken for it.
    """
    filesystem, root = open_storage(run)
    if filesystem.get_file_info(f"{root}/recipe.yaml").type != pyarrow.fs.FileType.File:
        raise FileNotFoundError(errno.ENOENT, "no such run there any more", root)
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
    older = [place for place in _candidates(filesystem, root) if place != target]
    for place in older[most - 1 :]:
        with suppress(OSError):  # it goes with the next one
            filesystem.delete_dir(place)


def _upload(source: Path, filesystem: pyarrow.fs.FileSystem, target: str) -> None:
    # Several threads at once have been seen to hang on S3 (apache/arrow#32372).
    pyarrow.fs.copy_files(str(source), target, destination_filesystem=filesystem, use_threads=False)


def _warn(problem: str) -> None:
    print(f"warning: {problem}", flush=True)


@contextmanager
def newest(
    run: str, say: Callable[[str], None] = _warn, *, files: Collection[str] | None = None
) -> Iterator[Path]:
    """A local directory with the newest whole checkpoint of `run`: a run directory, a checkpoint, or a URI of either.

    Of its files those of `files` are checked (none: all, such as `RECIPE` or `MODEL`), and copied to a temporary folder for
    the length of the context where they are remote. Where one is corrupt, the checkpoint before is taken, and `say` is told.
    Raises `InputError` if there is none.
    """
    filesystem, root = open_storage(run)
    problems: list[str] = []
    for path in _candidates(filesystem, root):
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
    """Whether `place` is a local directory with a tokenizer alone, such as `mergevq import-official` writes."""
    directory = _local_path(place)
    return (directory / "config.json").is_file() and not (directory / ABOUT).is_file()


@contextmanager
def weights(place: str, *, files: Collection[str] = MODEL) -> Iterator[Path]:
    """A local directory that `mergevq.load` reads: of a run, a checkpoint, a URI of either, or a tokenizer alone.

    `files`: see `newest`.
    """
    if is_bare(place):
        yield _local_path(place)
    else:
        with newest(place, files=files) as directory:
            yield directory


def listed(run: str) -> list[str]:
    """Locations of the whole checkpoints of a run, newest first; of a checkpoint, itself."""
    filesystem, root = open_storage(run)
    found = _candidates(filesystem, root)
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        return found
    return [inside(run, path.removeprefix(root)) for path in found]


def at_step(run: str, step: int) -> str:
    """The location of the whole checkpoint after `step` optimizer steps; of a checkpoint, itself."""
    return next(place for place in listed(run) if directory_name(step) in place)


def inside(place: str | Path, name: str) -> str:
    """`name` below a path or URI; a URI's query (`?endpoint_override=…`) stays at its end."""
    base, mark, query = str(place).partition("?") if "://" in str(place) else (str(place), "", "")
    below = name.strip("/")
    return f"{base.rstrip('/')}/{below}{mark}{query}" if below else f"{base}{mark}{query}"


def open_storage(place: str | Path) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a path or URI and the path in it. Raises `InputError` for an unusable URI."""
    text = str(place)
    try:
        if "://" in text:
            return pyarrow.fs.FileSystem.from_uri(text)
        return pyarrow.fs.LocalFileSystem(), str(_local_path(text).resolve())
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"storage '{text}' cannot be opened: {error}") from None


def absolute(place: str) -> str:
    """A place as every process understands it, whatever folder it runs in: a local path written out, a URI as it is."""
    return place if "://" in place else str(_local_path(place).absolute())


def _local_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise InputError(f"'{text}': nobody here is called so; write the path out") from None


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _candidates(filesystem: pyarrow.fs.FileSystem, root: str) -> list[str]:
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


@contextmanager
def _local(filesystem: pyarrow.fs.FileSystem, path: str) -> Iterator[Path]:
    """Where the checkpoint lies, or an empty temporary folder for a remote one."""
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
