"""The trained tokenizer that a run starts from (`task.initial_run`): found, asked for what a recipe leaves out, loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow.fs
import torch
from torch import Tensor

import mergevq
from mergevq.config import Tree, config, merged, parse, to_tree
from mergevq.discriminator import PatchDiscriminator
from mergevq.errors import InputError
from mergevq.hub import on_hub
from mergevq.losses.adversarial import PatchAdversarialConfig
from mergevq.losses.config import TokenizerTrainingConfig
from mergevq.paths import WeightsPath
from mergevq.serialization import read_config
from mergevq.tokenizer import MergeVQ, TokenizerConfig
from mergevq.training.initial import (
    DISCRIMINATOR,
    TOKENIZER,
    InitialState,
    differences,
    require_fit,
    start_from,
)
from mergevq.training.tokenizer import TokenizerTraining
from mergevq_platform import tasks
from mergevq_platform.data import ViewsConfig
from mergevq_platform.recipe import EvaluationConfig, TokenizerTaskConfig
from mergevq_platform.recipe.paths import RunPath
from mergevq_platform.recipe.task_config import InitialPart, require_one_start
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.tokenizer_ref import find_tokenizer
from mergevq_platform.tasks.task import Task

KEY = "task.initial_run"
(STATE,) = checkpoints.RESUME
AT_THE_END = 10**9  # steps after which nothing of a training is yet to start


@dataclass(frozen=True, kw_only=True)
class InitialTokenizer:
    """A trained tokenizer and how it was trained, as far as that is there."""

    location: str  # a checkpoint, a tokenizer alone, or a URI of either
    sha256: str  # of its averaged weights
    config: TokenizerConfig
    trained: TokenizerTaskConfig | None
    step: int  # optimizer steps of its training


def find_initial(place: str, sha256: str | None = None) -> InitialTokenizer:
    """The tokenizer at a place. Raises `InputError` if there is none, or another than the one of `sha256`."""
    found = find_tokenizer(place, key=KEY)
    _require_same(found.location, found.sha256, sha256)
    with checkpoints.weights(found.location, files=("config.json", "recipe.yaml")) as directory:
        whole = (directory / checkpoints.ABOUT).is_file()
        return InitialTokenizer(
            location=found.location,
            sha256=found.sha256,
            config=read_config(directory),
            trained=_trained(directory),
            step=checkpoints.about(directory)["step"] if whole else AT_THE_END,
        )


@config
class UnreadTokenizerTask(Task):
    """A tokenizer's task that leaves model, kept counts or losses to the initial run, before that is read.

    What it says of the model and of the losses lies over what the run says, as over a preset.
    """

    kind: Literal["tokenizer"] = "tokenizer"
    preset: str | None = None
    model: Tree | None = None
    keep: Tree | None = None
    loss_preset: str | None = None
    losses: Tree | None = None
    initial_weights: WeightsPath | None = None
    initial_weights_sha256: str | None = None
    initial_run: RunPath
    initial_run_sha256: str | None = None
    initial_except: tuple[InitialPart, ...] = ()

    def __post_init__(self) -> None:
        require_one_start(self.initial_run, self.initial_weights, self.initial_except)

    def check(self, evaluation: EvaluationConfig) -> None:
        """Nothing yet: the counts may be those of the run that training starts from."""

    def complete_views(self, views: ViewsConfig) -> Tree:
        """The section unchanged: the sizes of views are those of the model."""
        del views
        return {}

    @property
    def as_tokenizer(self) -> TokenizerTaskConfig:
        """Raises `InputError`: it is not known yet."""
        raise InputError(
            f"the model of this recipe is that of {KEY}, '{self.initial_run}', which is not read yet"
        )

    @property
    def curves(self) -> bool:
        """True."""
        return True

    def pin(self) -> TokenizerTaskConfig:
        """The whole task. Raises `InputError` for an initial run that is not there, and for one that does not fit."""
        found = find_initial(self.initial_run, self.initial_run_sha256)
        section = tasks.find(self.kind)
        whole = parse(section, section.complete(_laid_over(found, to_tree(self))), where="task.")
        return pinned(whole, found)


def pinned(task: TokenizerTaskConfig, found: InitialTokenizer | None = None) -> TokenizerTaskConfig:
    """The task with location and hash of its initial run. Raises `InputError` if that is not there or does not fit."""
    assert task.initial_run is not None
    found = found or find_initial(task.initial_run)
    own = _shapes(task.model, task.losses)
    given = _shapes(found.config, found.trained.losses if found.trained else None)
    without = task.initial_except
    require_fit(own, given, here=task.model, there=found.config, without=without, name=found.location)
    return replace(task, initial_run=found.location, initial_run_sha256=found.sha256)


def begin_from(task: TokenizerTaskConfig, training: TokenizerTraining, averaged: MergeVQ) -> list[str]:
    """Load the initial run into a training that begins; returns what did not come from it, and what was different there."""
    assert task.initial_run is not None
    place = task.initial_run
    files = (*checkpoints.MODEL, STATE) if _has_state(place) else checkpoints.MODEL
    with checkpoints.weights(place, files=files) as directory:
        _require_same(place, checkpoints.weights_sha256(directory), task.initial_run_sha256)
        model = mergevq.load(directory)
        state = _state_of_training(directory) if STATE in files else {}
        initial = InitialState(name=place, config=model.config, weights=model.state_dict(), training=state)
        remarks = start_from(training, averaged, initial, without=task.initial_except)
        return remarks + list(_otherwise(task, place, model.config, _trained(directory)))


def _laid_over(found: InitialTokenizer, tree: Tree) -> Tree:
    """The section `tree` with what it leaves out, from the initial run."""
    own: Tree = to_tree(found.trained) if found.trained else {}
    task = {**tree, "initial_run": found.location, "initial_run_sha256": None}
    if not tree["preset"]:
        task["preset"] = own.get("preset")
        task["model"] = merged(to_tree(found.config), tree["model"] or {})
    if not tree["keep"]:
        task["keep"] = own.get("keep") or {"kind": "list", "counts": [found.config.keep]}
    if not tree["loss_preset"]:
        task["loss_preset"] = own.get("loss_preset")
        losses = to_tree(found.trained.losses.after(found.step)) if found.trained else _plain_losses(found)
        task["losses"] = merged(losses, tree["losses"] or {})
    return task


def _plain_losses(found: InitialTokenizer) -> Tree:
    """The losses where nothing says how the tokenizer was trained: those that need no weights of others."""
    losses = to_tree(TokenizerTrainingConfig())
    return losses if found.config.recovery else merged(losses, {"recovery": {"weight": 0.0}})


def _shapes(model: TokenizerConfig, losses: TokenizerTrainingConfig | None) -> dict[str, torch.Size]:
    """The shapes of tokenizer and discriminator, by names of `resume_state`."""
    with torch.device("meta"):
        own = {f"{TOKENIZER}{name}": value.shape for name, value in MergeVQ(model).state_dict().items()}
    if losses is not None and isinstance(losses.adversarial, PatchAdversarialConfig):
        discriminator = PatchDiscriminator(losses.adversarial.discriminator)
        own |= {f"{DISCRIMINATOR}{name}": value.shape for name, value in discriminator.state_dict().items()}
    return own


def _trained(directory: Path) -> TokenizerTaskConfig | None:
    return checkpoints.recipe_of(directory).tokenizer if (directory / "recipe.yaml").is_file() else None


def _has_state(place: str) -> bool:
    # Who hands a checkpoint on often leaves it out: it is several times the model.
    if on_hub(place) or checkpoints.is_bare(place):
        return False
    filesystem, path = checkpoints.open_storage(place)
    return filesystem.get_file_info(f"{path}/{STATE}").type == pyarrow.fs.FileType.File


def _state_of_training(directory: Path) -> Mapping[str, Tensor]:
    # Mapped: the optimizers' moments, most of the file, are not read.
    return torch.load(directory / STATE, map_location="cpu", mmap=True, weights_only=True)["training"]


def _otherwise(
    task: TokenizerTaskConfig, place: str, there: TokenizerConfig, trained: TokenizerTaskConfig | None
) -> Iterator[str]:
    """Differences that no shape tells."""
    if other := [what for what in differences(task.model, there) if not what.startswith("keep ")]:
        yield f"{KEY}: {place} was trained otherwise: task.model.{', task.model.'.join(other)}"
    counts = ", ".join(map(str, task.kept_counts()))
    if trained is None:
        yield f"{KEY}: {place} does not say at which kept counts it was trained; here they are {counts} (task.keep)"
    elif task.model.grid_tokens == there.grid_tokens and set(task.kept_counts()) - set(trained.kept_counts()):
        known = ", ".join(map(str, trained.kept_counts()))
        yield f"{KEY}: {place} was trained at {known} kept tokens; here they are {counts} (task.keep)"


def _require_same(place: str, found: str, recorded: str | None) -> None:
    if recorded not in (None, found):
        raise InputError(
            f"{KEY}: {place} has weights {found[:12]}…, but {(recorded or '')[:12]}… is recorded "
            "(task.initial_run_sha256): put those back, or leave the hash out"
        )
