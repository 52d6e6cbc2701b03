"""What a sweep is: a question, a base recipe, what may vary, how to search, when to stop early, what to aim at."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from mergevq.config import Tree, with_overrides
from mergevq.errors import InputError
from mergevq.text_files import decoded
from mergevq_platform import recipe as recipes
from mergevq_platform.recipe import Recipe
from mergevq_platform.storage import naming
from mergevq_platform.sweeps import space as spaces
from mergevq_platform.sweeps.objectives import (
    Objective,
    mean_log_frechet,
    mean_psnr,
    sample_class_top1,
    sample_frechet,
)
from mergevq_platform.sweeps.space import Params, Space
from mergevq_platform.tasks.task import task_of


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every combination, each over `seeds` seeds."""

    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Random:
    """`trials` random choices, each over `seeds` seeds."""

    trials: int
    seeds: int = 1
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Tpe:
    """Optuna's tree-structured Parzen estimator; over several objectives at once where the sweep names several."""

    trials: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Population:
    """Population-based training (Jaderberg et al. 2017): every `every_steps` the worse half copies weights and choices
    of the better half, and changes the choices a little. The choices then are schedules, not values."""

    size: int
    every_steps: int
    seed: int = 0


Search = Grid | Random | Tpe | Population


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """ASHA (Li et al. 2020) on the first objective, measured on few pictures every `every_steps` optimizer steps.

    A trial goes on past `every_steps * factor**k` steps if it is among the best 1/factor of those that came so far.
    """

    every_steps: int
    factor: int = 2


@dataclass(frozen=True, kw_only=True)
class Rung:
    """How the objectives are measured while trials still train: on fewer pictures than the final curve."""

    keeps: tuple[int, ...] | None = None  # none: those of the recipe's curve
    scales: tuple[float, ...] | None = None  # generators: guidance scales; none: those of the recipe
    images: int = 256
    probe_images: int = 1000


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One question about merging, as data. A file in `sweeps/` holds one, called SWEEP."""

    name: str
    question: str
    recipe: str  # a recipe's file or name
    overrides: tuple[str, ...] = ()  # `a.b=c`, laid over the recipe for every trial
    space: Space
    search: Search
    objectives: tuple[Objective, ...]  # the first is the one that early stopping and populations compare
    family: str | None = None  # the parameter that figures colour by; none: the first of the space
    stopping: EarlyStopping | None = None
    rung: Rung = field(default_factory=Rung)
    gpus_per_trial: float = 1.0  # of a trial with one worker on GPUs; a fraction shares one
    max_failures: int = 2  # restarts of a trial from its checkpoint
    folder: str | None = None  # what relative paths start from; none: where we are. Set when a sweep begins.
    pins: recipes.Pins | None = (
        None  # the models and weights that its recipes build on. Set when a sweep begins.
    )

    def __post_init__(self) -> None:
        # A file may hold NumPy's numbers, which neither JSON nor a recipe takes.
        object.__setattr__(self, "space", spaces.plain(self.space, ""))
        for name in ("search", "stopping", "rung"):
            if (settings := getattr(self, name)) is not None:
                own = {part.name: getattr(settings, part.name) for part in fields(settings)}
                plain = {key: _as_given(own[key], spaces.plain(own[key], f"{name}.{key}")) for key in own}
                object.__setattr__(self, name, replace(settings, **plain))
        for name in ("gpus_per_trial", "max_failures"):
            object.__setattr__(self, name, spaces.plain(getattr(self, name), name))

    def base(self) -> Tree:
        """The tree that every trial starts from."""
        beside = Path(self.folder or ".") / self.recipe
        return with_overrides(recipes.read(beside if beside.is_file() else self.recipe), self.overrides)

    def recipe_of(self, params: Params, *, seed: int | None = None, name: str | None = None) -> Recipe:
        """The complete recipe of a choice. Raises `InputError` if the schema refuses it."""
        tree = spaces.laid_over(self.base(), spaces.chosen(self.space, spaces.Fixed(params)))
        if seed is not None:
            tree = {**tree, "seed": seed}
        if self.rung_steps is not None:
            tree = {**tree, "checkpoint_every": self.rung_steps}
        return recipes.locate(recipes.complete({**tree, "name": name} if name else tree), self.folder)

    @property
    def rung_steps(self) -> int | None:
        """Optimizer steps between measurements of a trial under way; None where nobody reads them."""
        if isinstance(self.search, Population):
            return self.search.every_steps
        return self.stopping.every_steps if self.stopping else None

    @property
    def family_key(self) -> str:
        """The name of the parameter that figures colour by."""
        return self.family or next(iter(spaces.corners(self.space)[0]))

    def family_of(self, params: Params) -> str:
        """What figures colour a trial by."""
        value = params.get(self.family_key)
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    def listed(self) -> list[tuple[Params, int]] | None:
        """(choice, seed) of every trial, where they are known beforehand; None where the search decides as it goes."""
        base_seed = int(self.base().get("seed", 0))
        match self.search:
            case Grid(seeds=seeds):
                chosen = spaces.grid(self.space)
            case Random(trials=trials, seeds=seeds, seed=seed):
                chosen = [spaces.draw(self.space, seed=seed, number=i) for i in range(trials)]
            case Population(size=size, seed=seed):
                seeds, chosen = 1, [spaces.draw(self.space, seed=seed, number=i) for i in range(size)]
            case Tpe():
                return None
        return [(params, base_seed + offset) for params in chosen for offset in range(seeds)]

    def check(self) -> None:
        """Raise `InputError` for what cannot work, before anything starts."""
        naming.check_name(self.name, "a sweep's name", longest=naming.LONGEST - naming.ADDED)
        if not self.objectives:
            raise InputError(f"sweep '{self.name}' names no objective: give at least one")
        spaces.check(self.space)
        corners = spaces.corners(self.space)
        names = list(dict.fromkeys(name for params in corners for name in params))
        if self.family is not None and self.family not in names:
            raise InputError(f"family '{self.family}' is not in the space: one of {', '.join(names)}")
        trials = len(self.listed() or ()) or getattr(self.search, "trials", 0)
        if trials < 1:
            raise InputError(f"sweep '{self.name}' has no trials: raise search.trials")
        if isinstance(self.search, Population) and (self.stopping or self.search.size < 2):
            raise InputError("a population needs at least two members and no early stopping beside it")
        # Every option and both ends of every range must be a recipe, before the first trial starts.
        for params in corners:
            try:
                recipe = self.recipe_of(params)
            except InputError as error:
                raise InputError(f"sweep '{self.name}' with {described(params)}: {error}") from None
            if not task_of(recipe).curves:
                raise InputError(
                    f"sweep '{self.name}': recipe '{recipe.name}' trains a {recipe.task.kind}, neither a tokenizer nor a generator"
                )
            for objective in self.objectives:
                if objective.task != recipe.task.kind:
                    raise InputError(
                        f"sweep '{self.name}': objective {objective.name} is of {objective.task}s, but recipe '{recipe.name}' "
                        f"trains a {recipe.task.kind}"
                    )
            if isinstance(self.search, Population) and recipe.cluster.workers > 1:
                raise InputError(
                    "population-based training needs trials of one worker: set cluster.workers=1"
                )


def _as_given(value: Any, plain: Any) -> Any:
    return tuple(plain) if isinstance(value, tuple) else plain


def described(params: Params) -> str:
    """The choice in one line."""
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in params.items()
    )


def load(path: str | Path) -> Sweep:
    """The SWEEP of a Python file, not yet checked. Raises `InputError` if the file is missing, raises, or holds none."""
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"no sweep file '{path}': give a Python file with a value SWEEP, such as those in sweeps/"
        )
    decoded(file, file.read_bytes(), importlib.util.decode_source)  # as Python reads it, or one line
    spec = importlib.util.spec_from_file_location(f"mergevq_sweep_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file} raises {type(error).__name__}: {error}") from error
    finally:
        sys.dont_write_bytecode = writes
    sweep = getattr(module, "SWEEP", None)
    if not isinstance(sweep, Sweep):
        raise InputError(f"{file} has no value SWEEP of type mergevq_platform.sweeps.Sweep")
    return sweep


def changed(
    sweep: Sweep,
    overrides: Sequence[str] = (),
    *,
    recipe: str | None = None,
    trials: int | None = None,
    seeds: int | None = None,
) -> Sweep:
    """The sweep with more overrides laid over its base, another recipe, number of trials or of seeds; checked.

    Raises `InputError` where the search has no such number.
    """
    search: Any = sweep.search
    for name, value in (("trials", trials), ("seeds", seeds)):
        if value is not None:
            if not hasattr(search, name):
                kind = type(search).__name__
                raise InputError(f"--{name} means nothing to a {kind} search: leave it out")
            search = replace(search, **{name: value})
    sweep = replace(
        sweep, recipe=recipe or sweep.recipe, overrides=(*sweep.overrides, *overrides), search=search
    )
    sweep.check()
    return sweep


def from_dimensions(recipe: str, dimensions: Sequence[str]) -> Sweep:
    """A sweep made on the command line: a grid where every dimension is a list, else 16 random choices.

    It aims at distance and PSNR of a tokenizer, and at distance and recognised classes of a generator without guidance.
    """
    space = dict(parse_domain(text) for text in dimensions)
    listed = all(isinstance(domain, spaces.Choice) for domain in space.values())
    stem = Path(recipe).stem
    generates = recipes.complete(recipes.read(recipe)).task.as_generator is not None
    return Sweep(
        name=naming.fitted(f"{stem[:80]}-sweep"),
        question=f"{stem}: what do {', '.join(space)} change?",
        recipe=recipe,
        space=space,
        search=Grid() if listed else Random(trials=16),
        objectives=(sample_frechet(), sample_class_top1())
        if generates
        else (mean_log_frechet(), mean_psnr()),
    )


def parse_domain(text: str) -> tuple[str, Any]:
    """(key, domain) of a command-line dimension: `a.b=1,2,3`, `a.b=0.1..10` or `a.b=0.1..10:log`.

    Raises `InputError` if it is none of them.
    """
    key, mark, given = text.partition("=")
    if not mark or not key or not given:
        raise InputError(f"--over {text}: write KEY=A,B,C or KEY=LOW..HIGH or KEY=LOW..HIGH:log")
    if ".." in given:
        ends, _, scale = given.partition(":")
        low, _, high = ends.partition("..")
        try:
            numbers = [yaml.safe_load(end) for end in (low, high)]
            first, last = (float(number) for number in numbers)
        except (TypeError, ValueError, yaml.YAMLError):
            raise InputError(f"--over {text}: {low!r} and {high!r} must be numbers") from None
        if scale not in ("", "log"):
            raise InputError(f"--over {text}: after the colon comes 'log' or nothing")
        if all(isinstance(number, int) for number in numbers) and not scale:
            return key, spaces.integer(int(first), int(last))
        return key, (spaces.log_uniform if scale else spaces.uniform)(first, last)
    try:
        options = yaml.safe_load(f"[{given}]")
    except yaml.YAMLError:
        raise InputError(f"--over {text}: the options are no YAML list") from None
    return key, spaces.choice(*options)


def named(params: Mapping[str, Any]) -> dict[str, str]:
    """Choices as MLflow parameters."""
    return {f"sweep.{key}": str(value) for key, value in params.items()}
