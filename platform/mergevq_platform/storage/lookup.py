"""The one lookup of names: a run here, a run that only the tracking store knows, a registered model, a model of the Hub, a
checkpoint, a tokenizer.

Every verb that takes a trained model takes all of these, and finds the same for the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from mergevq.errors import InputError
from mergevq.hub import check_spelling, on_hub
from mergevq.serialization import read_config
from mergevq_platform.recipe import FindRun, ResolvedRecipe, parse_resolved, placeholder_task, read
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.hub import pinned
from mergevq_platform.storage.runs import Run, run_around
from mergevq_platform.tracking.curve import open_for_curve, open_for_evaluation
from mergevq_platform.tracking.journal import Journal
from mergevq_platform.tracking.listing import TrackedRun, find_run
from mergevq_platform.tracking.models import SCHEME, Fetched, fetch_model
from mergevq_platform.tracking.records import JOURNAL_NAME
from mergevq_platform.tracking.store import Store, StoreUnavailable


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A trained model by name. Its checkpoint is opened when it is first asked for, and only `checkpoints.MODEL` of it.

    Raises `InputError` then, where there is no whole checkpoint.
    """

    name: str
    place: str  # a run, a checkpoint or a tokenizer's directory: a path or URI; of the Hub with the commit
    run: Run | None = None  # its run, where that lies here
    tracked: TrackedRun | None = None  # its run, where only the store knows it
    fetched: Fetched | None = None  # of a registered model: what was copied
    told: ResolvedRecipe | None = None  # the recipe that was named for a tokenizer without one

    @property
    def label(self) -> str:
        """Its name in tables."""
        if self.fetched is not None or on_hub(self.place):
            return self.name
        return (
            self.run.name if self.run else self.tracked.name if self.tracked else Path(self.checkpoint).name
        )

    @property
    def checkpoint(self) -> str:
        """One checkpoint or tokenizer alone: a path or URI."""
        return self._opened[0]

    @property
    def step(self) -> int | None:
        """The optimizer step of the checkpoint; None where the weights are as someone saved them."""
        return self._opened[1]

    @property
    def stored_recipe(self) -> ResolvedRecipe | None:
        """The recipe of the training, or the one told; None for a tokenizer without a recipe."""
        return self.told or self._opened[2]

    @property
    def recipe(self) -> ResolvedRecipe:
        """The recipe that names data and protocol. Raises `InputError` for a tokenizer without one."""
        if (recipe := self.stored_recipe) is None:
            raise InputError(
                f"{self.name} is a tokenizer without a recipe: name one for data and protocol, such as --recipe gr_256_d64"
            )
        return recipe

    def require_tokenizer(self) -> None:
        """Raise `InputError` that says what it is, where it is not a tokenizer."""
        if (recipe := self.stored_recipe) is not None and recipe.task.as_tokenizer is None:
            raise InputError(
                f"{self.name} is a {self.task_kind} run, which encodes no images: give a run of a tokenizer (kind tokenizer or "
                "recovery in mergevq runs list), or an imported tokenizer"
            )

    def require_generator(self) -> None:
        """Raise `InputError` that says what it is, where it is not a generator."""
        recipe = self.stored_recipe
        if recipe is None or recipe.task.as_generator is None:
            raise InputError(
                f"{self.name} is a {self.task_kind}{' run' if recipe else ''}, which generates no images: give a run of a generator "
                "(kind generator in mergevq runs list), trained on codes that mergevq tokenize makes"
            )

    @property
    def task_kind(self) -> str:
        """The `kind` of the recipe's task."""
        if self.fetched is not None or checkpoints.is_bare(self.place):
            return "tokenizer"
        with checkpoints.newest(self.place, files=checkpoints.RECIPE) as directory:
            return str(checkpoints.about(directory)["task"])

    @property
    def directory(self) -> Path | None:
        """The directory of tables and figures of its evaluations, if it has a run here."""
        return self.run.directory if self.run else None

    def journal(self, home: Path) -> Journal | None:
        """The journal that a new evaluation goes to: the run's own, or, where it has one, of a new run that is linked to it."""
        if self.run is not None and (self.run.directory / JOURNAL_NAME).is_file():
            return open_for_curve(self.run.directory)
        if self.tracked is not None:
            return open_for_evaluation(home / "evaluations", self.tracked)
        return None

    @cached_property
    def _opened(self) -> tuple[str, int | None, ResolvedRecipe | None]:
        if self.fetched is not None:
            return self.place, self.fetched.step, checkpoints.recipe_of(self.fetched.path)
        if checkpoints.is_bare(self.place):
            return self.place, None, None
        with checkpoints.newest(self.place, files=checkpoints.MODEL) as directory:
            recipe, step = checkpoints.recipe_of(directory), checkpoints.about(directory)["step"]
        return checkpoints.at_step(self.place, step), step, recipe


def find(
    name: str, *, home: Path, store: Store, storage: str | None = None, recipe: str | None = None
) -> FoundModel:
    """The model of `name`: `models:/NAME@alias`, `hf://owner/name[@revision]`, a path or URI, a run's name, or the name or id
    of a run that only the tracking store knows. A path is looked for first.

    `recipe` names data and protocol for a tokenizer without a recipe of its own. Raises `InputError` for a name that is
    none of these, and for a recipe where it is not wanted.
    """
    found = _found(name, home=home, store=store, storage=storage)
    if recipe is None:
        return found
    if found.fetched is not None or not checkpoints.is_bare(found.place):
        raise InputError(f"{name} has its own recipe: leave --recipe out")
    return replace(found, told=_around(found.place, recipe))


def _found(name: str, *, home: Path, store: Store, storage: str | None) -> FoundModel:
    if name.startswith(SCHEME):
        model = fetch_model(store, name, home / "models")
        return FoundModel(name=name, place=str(model.path), tracked=_tracked(model.uid, store), fetched=model)
    check_spelling(name)
    if on_hub(name):
        return FoundModel(name=name, place=pinned(name, "model"))
    if checkpoints.is_bare(name):
        return FoundModel(name=name, place=name)
    if checkpoints.listed(name):
        return FoundModel(name=name, place=name, run=run_around(name, home))
    try:
        run = Run.find(name, home=home, storage=storage)
    except InputError as error:
        try:
            tracked = _tracked(name, store)
        except StoreUnavailable as unknown:
            raise InputError(f"{error}; and {unknown}") from None
        if tracked is None:
            raise InputError(f"{error}; and none of that name or id in {store.public_uri}") from None
        return FoundModel(name=name, place=tracked.tags["mergevq.checkpoints"], tracked=tracked)
    return FoundModel(name=name, place=run.location, run=run)


def places_of_runs(home: Path, store: Callable[[], Store]) -> FindRun:
    """The place of a run, registered model or id that a recipe names. A path or URI stays as it is, one of the Hub with its commit.

    It raises `InputError` for a name that means nothing.
    """

    def place(name: str) -> str:
        if on_hub(name):
            return pinned(name, "model")
        if "/" in name and not name.startswith(SCHEME):
            return name  # a path or URI; what is not there any more is said where it is opened
        if checkpoints.is_bare(name) or checkpoints.listed(name):
            return name
        return find(name, home=home, store=store()).place

    return place


def _tracked(name: str, store: Store) -> TrackedRun | None:
    try:
        found = find_run(store, name)
        if found.evaluates is not None:  # an evaluation of it was named
            found = find_run(store, found.evaluates)
    except StoreUnavailable:
        raise
    except InputError:
        return None
    return found if "mergevq.checkpoints" in found.tags else None


def _around(directory: str, recipe: str) -> ResolvedRecipe:
    """The recipe named `recipe` with the model of a tokenizer's directory in place of its own."""
    tree, config = read(recipe), read_config(directory)
    data = tree.get("data") or {}
    views = {**(data.get("views") or {}), "image_size": config.image_size}
    evaluation = {**(tree.get("evaluation") or {}), "keeps": None}
    return parse_resolved(
        {**tree, "task": placeholder_task(config), "data": {**data, "views": views}, "evaluation": evaluation}
    )
