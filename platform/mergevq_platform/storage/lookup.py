"""What a name means: a run here, a run that only the tracking store knows, a registered model, a checkpoint, a tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mergevq.errors import InputError
from mergevq.serialization import read_config
from mergevq_platform.recipe import ResolvedRecipe, parse_resolved, placeholder_task, read
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run, run_around
from mergevq_platform.tracking.curve import open_for_curve, open_for_evaluation
from mergevq_platform.tracking.journal import Journal
from mergevq_platform.tracking.listing import TrackedRun, find_run
from mergevq_platform.tracking.models import SCHEME, fetch_model
from mergevq_platform.tracking.records import JOURNAL_NAME
from mergevq_platform.tracking.store import Store, Unanswered


@dataclass(frozen=True, kw_only=True)
class Found:
    """A tokenizer on disk or in storage, with the recipe that its numbers are made by."""

    label: str
    checkpoint: str  # one checkpoint or tokenizer alone, a path or URI
    recipe: ResolvedRecipe
    step: int | None = None  # none: the weights are as someone saved them
    run: Run | None = None  # its run, where that lies here
    tracked: TrackedRun | None = None  # its run, where only the store knows it

    @property
    def directory(self) -> Path | None:
        """Where tables and figures of its evaluations belong, if it has a run here."""
        return self.run.directory if self.run else None

    def journal(self, home: Path) -> Journal | None:
        """The journal that a new curve goes to: the run's own, or of a new run that is linked to it."""
        if self.run is not None and (self.run.directory / JOURNAL_NAME).is_file():
            return open_for_curve(self.run.directory)
        if self.tracked is not None:
            return open_for_evaluation(home / "evaluations", self.tracked)
        return None


def find(
    name: str, *, home: Path, store: Store, storage: str | None = None, recipe: str | None = None
) -> Found:
    """What `name` means: `models:/NAME@alias`, a path or URI, a run's name, or the name or id of a run that only the
    tracking store knows.

    `recipe` names data and protocol for a tokenizer without a recipe of its own. Raises `InputError` for a name that is
    none of these, and for a recipe where it is not wanted, or missing.
    """
    if name.startswith(SCHEME):
        return _registered(name, home, store, recipe)
    if checkpoints.is_bare(name):
        return _bare(name, recipe)
    if recipe is not None:
        raise InputError(f"{name} has its own recipe: leave --recipe out")
    if checkpoints.listed(name):
        return _newest(name, run=run_around(name, home))
    try:
        run = Run.find(name, home=home, storage=storage)
    except InputError as error:
        try:
            tracked = _tracked(name, store)
        except Unanswered as unknown:
            raise InputError(f"{error}; and {unknown}") from None
        if tracked is None:
            raise InputError(f"{error}; and none of that name or id in {store.public_uri}") from None
        return _newest(tracked.tags["mergevq.checkpoints"], tracked=tracked)
    return _newest(run.location, run=run)


def locate(name: str, *, home: Path, store: Store, storage: str | None = None) -> str:
    """The path or URI of what `name` means, for those who need only the weights."""
    if name.startswith(SCHEME):
        return str(fetch_model(store, name, home / "models").path)
    if checkpoints.is_bare(name) or checkpoints.listed(name):
        return name
    return find(name, home=home, store=store, storage=storage).checkpoint


def _newest(location: str, *, run: Run | None = None, tracked: TrackedRun | None = None) -> Found:
    with checkpoints.newest(location, files=checkpoints.MODEL) as directory:
        recipe, step = checkpoints.recipe_of(directory), checkpoints.about(directory)["step"]
    place = checkpoints.at_step(location, step)
    label = run.name if run else tracked.name if tracked else Path(place).name
    return Found(label=label, checkpoint=place, recipe=recipe, step=step, run=run, tracked=tracked)


def _bare(name: str, recipe: str | None) -> Found:
    if recipe is None:
        raise InputError(
            f"{name} is a tokenizer without a recipe: name one for data and protocol, such as --recipe gr_256_d64"
        )
    return Found(label=Path(name).name, checkpoint=name, recipe=_around(name, recipe))


def _registered(name: str, home: Path, store: Store, recipe: str | None) -> Found:
    if recipe is not None:
        raise InputError(f"{name} has its own recipe: leave --recipe out")
    model = fetch_model(store, name, home / "models")
    return Found(
        label=name,
        checkpoint=str(model.path),
        recipe=checkpoints.recipe_of(model.path),
        step=model.step,
        tracked=_tracked(model.uid, store),
    )


def _tracked(name: str, store: Store) -> TrackedRun | None:
    try:
        found = find_run(store, name)
        if found.evaluates is not None:  # an evaluation of it was named
            found = find_run(store, found.evaluates)
    except Unanswered:
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
