"""Forks: trainings that go on from a checkpoint of another run, their trunk, with other settings.

The trunk's state is taken as it is: weights, their average, optimizers, discriminator, moving averages, loss scale, bad images
and the step, from which data position and every draw follow. A fork that changes nothing is the run that never stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mergevq.config import to_tree, with_overrides
from mergevq.errors import InputError
from mergevq.hub import on_hub
from mergevq_platform.recipe import (
    FindRun,
    ForkConfig,
    Recipe,
    ResolvedRecipe,
    complete,
    read,
    require_forkable,
)
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.checkpoints import TrainingState
from mergevq_platform.tracking.locks import ExclusiveLock
from mergevq_platform.tracking.records import JOURNAL_NAME

(STATE,) = checkpoints.RESUME


def parse_fork(text: str) -> ForkConfig:
    """The fork of `RUN@STEP`. Raises `InputError` for another text."""
    run, _, step = text.rpartition("@")
    if not run or not step.isascii() or not step.isdigit() or not int(step):
        raise InputError(
            f"--fork {text}: write RUN@STEP, a run and the optimizer step of a checkpoint that it kept"
        )
    return ForkConfig(run=run, step=int(step))


def name_of(fork: ForkConfig) -> str:
    """`RUN@STEP`, as people write it, of a fork whose run is a name or the location of a run or a checkpoint."""
    location = fork.run.partition("?")[0].rstrip("/")
    folder, _, last = location.rpartition("/")
    run = folder.rpartition("/")[2] if last.startswith(checkpoints.PREFIX) and folder else last
    return f"{run}@{fork.step}"


def trunk_recipe(fork: ForkConfig) -> ResolvedRecipe:
    """The recipe of the checkpoint. Raises `InputError` where the run has not kept it."""
    with checkpoints.newest(_checkpoint(fork), files=checkpoints.RECIPE) as directory:
        return checkpoints.recipe_of(directory)


def forked(fork: ForkConfig, recipe: str | None, overrides: Iterable[str], find_run: FindRun) -> Recipe:
    """The recipe of a file or name (None: the trunk's own) with `overrides` laid over it, that goes on from the trunk.

    Raises `InputError` where the trunk is not there.
    """
    fork = replace(fork, run=find_run(fork.run))
    tree = read(recipe) if recipe is not None else to_tree(trunk_recipe(fork))
    return complete({**with_overrides(tree, overrides), "fork": to_tree(fork)})


def recipe_file(text: str, find_run: FindRun) -> str:
    """The recipe's file beside the checkpoint `RUN@STEP`. Raises `InputError` where it is not there, or in remote storage."""
    fork = parse_fork(text)
    location = _checkpoint(replace(fork, run=find_run(fork.run)))
    if "://" in location:
        raise InputError(
            f"--fork {text}: the trunk's recipe lies in {location}: name a recipe's file or name beside --fork"
        )
    return f"{location}/recipe.yaml"


@dataclass(frozen=True)
class TrunkCheckpoint:
    """A checkpoint that trainings are forked from."""

    location: str
    sha256: str  # of its training state
    recipe: ResolvedRecipe


def trunk_checkpoint(fork: ForkConfig, home: Path | None = None) -> TrunkCheckpoint:
    """The checkpoint of a fork. Raises `InputError` for a run that still trains, a step whose checkpoint is not there, naming those
    that are, and a checkpoint that is another than the fork's hash says. `home` as for `pinned`."""
    if fork.sha256 is None:
        _require_at_rest(fork.run, home)
    location = _checkpoint(fork)
    with checkpoints.newest(location, files=checkpoints.RECIPE) as directory:
        sha256 = checkpoints.about(directory)["sha256"].get(STATE)
        trunk = checkpoints.recipe_of(directory)
    if sha256 is None:
        raise InputError(
            f"fork: the checkpoint {location} has no {STATE}, by which a training goes on: fork the run itself"
        )
    _require_same(location, sha256, fork)
    return TrunkCheckpoint(location, sha256, trunk)


def pinned(
    recipe: ResolvedRecipe, home: Path | None = None, opened: dict[ForkConfig, TrunkCheckpoint] | None = None
) -> ResolvedRecipe:
    """The recipe with the location and the hash of the checkpoint that it is forked from; unchanged where it is forked from none.

    Raises `InputError` as `trunk_checkpoint` does, and for keys that a fork may not change. `home` is where the journals of runs
    are whose checkpoints lie elsewhere. `opened` keeps checkpoints for the next of many recipes with the same fork.
    """
    fork = recipe.fork
    if fork is None:
        return recipe
    opened = {} if opened is None else opened
    if fork not in opened:
        opened[fork] = trunk_checkpoint(fork, home)
    trunk = opened[fork]
    require_forkable(trunk.recipe, recipe, name_of(fork))
    return replace(recipe, fork=replace(fork, run=trunk.location, sha256=trunk.sha256))


def restore(fork: ForkConfig, state: TrainingState, fingerprint: str) -> None:
    """Load the trunk into `state`. Raises `InputError` where its checkpoint is gone, another than was recorded, or of other data."""
    location = _checkpoint(fork)
    with checkpoints.newest(location, files=checkpoints.RESUME) as directory:
        about = checkpoints.about(directory)
        _require_same(location, about["sha256"].get(STATE), fork)
        if about["data_fingerprint"] != fingerprint:
            raise InputError(
                f"fork: {location} was trained on other data (the fingerprint differs): its place in the data means nothing here"
            )
        checkpoints.restore(directory, state)


def kept(fork: ForkConfig) -> bool:
    """Whether the checkpoint is there."""
    return fork.step in (step for _, step in _steps(fork.run))


def _checkpoint(fork: ForkConfig) -> str:
    if on_hub(fork.run):
        raise InputError(
            f"fork.run '{fork.run}' is on the Hub, where no optimizers are kept: name a run or a URI of one"
        )
    found = _steps(fork.run)
    for location, step in found:
        if step == fork.step:
            return location
    steps = ", ".join(str(step) for _, step in reversed(found))
    there = f"kept are steps {steps}" if steps else "it has kept none"
    raise InputError(
        f"fork: '{name_of(fork)}' is no checkpoint, {there}: fork one of these, or train the trunk with checkpoint_every and "
        "keep_checkpoints that keep it"
    )


def _steps(run: str) -> list[tuple[str, int]]:
    """(location, step) of every checkpoint of a run, newest first; a checkpoint may have been renamed."""
    found = []
    for location in checkpoints.listed(run):
        with checkpoints.newest(location, files=()) as directory:
            found.append((location, int(checkpoints.about(directory)["step"])))
    return found


def _require_same(location: str, sha256: str | None, fork: ForkConfig) -> None:
    if fork.sha256 not in (None, sha256):
        raise InputError(
            f"fork: {location} is another checkpoint than the one that this recipe was forked from (fork.sha256 differs): put that "
            "back, or leave the hash out"
        )


def _require_at_rest(place: str, home: Path | None) -> None:
    """Raise `InputError` where a process of this machine still writes the run: its checkpoints may go at any time."""
    run = place.partition("?")[0].rstrip("/")
    folder, _, last = run.rpartition("/")
    run = folder if last.startswith(checkpoints.PREFIX) else run
    beside = {home / "ray" / run.rpartition("/")[2]} if home is not None else set()
    for directory in beside | {Path(run)}:
        lock = (directory / JOURNAL_NAME).with_suffix(".lock")
        if not lock.is_file():
            continue
        try:
            with contextlib.suppress(PermissionError):
                ExclusiveLock(lock).release()
        except BlockingIOError:
            raise InputError(
                f"fork: '{directory.name}' still trains, or is being measured: wait until it has ended, or stop it (Ctrl-C, or SIGTERM)"
            ) from None
