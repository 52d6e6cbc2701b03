"""The definition of a sweep: question, base recipe, space, search, early stopping, objectives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from mergevq.allocation.config import KINDS
from mergevq.config import Tree, to_tree, with_overrides
from mergevq.errors import InputError
from mergevq_platform import recipe as recipes
from mergevq_platform.recipe import FindRun, Recipe, ResolvedRecipe
from mergevq_platform.storage import forks, naming
from mergevq_platform.sweeps import choosers
from mergevq_platform.sweeps import space as spaces
from mergevq_platform.sweeps.objectives import Objective
from mergevq_platform.sweeps.plain_values import plain
from mergevq_platform.sweeps.space import Params, Space
from mergevq_platform.sweeps.stopping import EarlyStopping, FrontStopping
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
class Trunk:
    """A training of the base recipe from which all trials fork: after `steps`, or after `fraction` of the steps. It is trained first."""

    steps: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.fraction is None):
            raise InputError("Trunk: give its length once, as steps or fraction")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise InputError(f"Trunk: fraction is {self.fraction:g}: it must lie between 0 and 1")

    def steps_of(self, total: int) -> int:
        """Its steps where whole trainings have `total`. Raises `InputError` where nothing is left for the trials."""
        steps = self.steps if self.steps is not None else round((self.fraction or 0) * total)
        if not 0 < steps < total:
            raise InputError(
                f"the trunk has {steps} steps of {total}: take at least 1, and leave some to the trials"
            )
        return steps


@dataclass(frozen=True, kw_only=True)
class Rung:
    """Measurement of the objectives while trials still train: on fewer images than the final curve."""

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
    objectives: tuple[Objective, ...]  # the first is the one that `EarlyStopping` and populations compare
    family: str | None = None  # the parameter that figures colour by; none: the first of the space
    stopping: EarlyStopping | FrontStopping | None = None
    fork: str | Trunk | None = None  # what all trials go on from: RUN@STEP, or a trunk that is trained first
    rung: Rung = field(default_factory=Rung)
    gpus_per_trial: float = 1.0  # of a trial with one worker on GPUs; a fraction shares one
    max_failures: int = 2  # restarts of a trial from its checkpoint
    folder: str | None = None  # what relative paths start from; none: where we are. Set when a sweep begins.
    rounds: tuple[
        int, ...
    ] = ()  # trials at the end of every round before the last. Set when a sweep is given more.
    pins: tuple[recipes.Pins, ...] = ()  # what its recipes build on. Set when a sweep begins.

    def __post_init__(self) -> None:
        # A file may hold NumPy's numbers, which neither JSON nor a recipe takes.
        for name in ("gpus_per_trial", "max_failures"):
            object.__setattr__(self, name, plain(getattr(self, name), name))
        object.__setattr__(self, "space", plain(self.space, ""))
        for name in ("search", "stopping", "rung"):
            if (settings := getattr(self, name)) is not None:
                own = {part.name: getattr(settings, part.name) for part in fields(settings)}
                made = {key: plain(value, f"{name}.{key}") for key, value in own.items()}
                made = {key: tuple(v) if isinstance(v, list) else v for key, v in made.items()}
                object.__setattr__(self, name, replace(settings, **made))

    def base(self) -> Tree:
        """The tree that every trial starts from."""
        beside = Path(self.folder or ".") / self.recipe
        tree = with_overrides(recipes.read(beside if beside.is_file() else self.recipe), self.overrides)
        return {**tree, "fork": to_tree(forks.parse_fork(self.fork))} if isinstance(self.fork, str) else tree

    def recipe_of(
        self, params: Params, *, seed: int | None = None, name: str | None = None, base: Tree | None = None
    ) -> Recipe:
        """The complete recipe of a choice; `base` is that of the sweep, read once for many choices.

        Raises `InputError` if the schema refuses it.
        """
        tree = spaces.laid_over(self.base() if base is None else base, spaces.values_of(self.space, params))
        if seed is not None:
            tree = {**tree, "seed": seed}
        if self.rung_steps is not None:
            tree = {**tree, "checkpoint_every": self.rung_steps}
        return recipes.locate(recipes.complete({**tree, "name": name} if name else tree), self.folder)

    def first_recipe(self) -> Recipe:
        """The recipe of first choices; it holds everything that all trials have in common."""
        return self.recipe_of(choosers.corners(self.space)[0])

    def trunk_recipe(self, find_run: FindRun) -> ResolvedRecipe:
        """The recipe without any choice, which a trunk is trained by. Raises `InputError` where it lacks what the space gives."""
        try:
            return recipes.resolve(self.base(), self.folder, find_run=find_run, pins=self.pins)
        except InputError as error:
            raise InputError(f"sweep '{self.name}', whose base recipe the trunk trains: {error}") from None

    def pinned(self, find_run: FindRun, home: Path | None = None) -> tuple[Sweep, ResolvedRecipe]:
        """The sweep with all that its recipes build on found, and the recipe of first choices.

        Raises `InputError` for a model of any choice that is not there, and for a choice that a fork cannot make.
        """
        if left := recipes.machine_choices(self.base()):
            # Here, once: else every trial would ask its own machine.
            return replace(self, overrides=(*self.overrides, *left)).pinned(find_run, home)
        pins: dict[tuple[str, ...], recipes.Pins] = {}
        resolved = []
        trunk = self.trunk_recipe(find_run) if isinstance(self.fork, Trunk) else None
        base = self.base()
        opened: dict[recipes.ForkConfig, forks.TrunkCheckpoint] = {}
        for params in choosers.corners(self.space):
            recipe = self.recipe_of(params, base=base)
            paths = tuple(path for _, _, path, _ in recipes.named_paths(recipe))
            if paths in pins and self.fork is None:
                continue
            try:
                found = recipes.resolve(recipe, find_run=find_run, pins=(*self.pins, *pins.values()))
                if trunk is not None:
                    recipes.require_forkable(trunk, found, "the trunk")
                resolved.append(forks.pinned(found, home, opened))
            except InputError as error:
                raise InputError(f"sweep '{self.name}' with {described(params)}: {error}") from None
            pins.setdefault(paths, recipes.Pins.between(recipe, resolved[-1]))
        return replace(self, pins=tuple(pins.values())), resolved[0]

    @property
    def rung_steps(self) -> int | None:
        """Optimizer steps between measurements of a trial under way; None where they are not read."""
        if isinstance(self.search, Population):
            return self.search.every_steps
        return self.stopping.every_steps if self.stopping else None

    def shared_steps(self, total: int) -> int:
        """The steps of the trunk that all trials share, where a whole training has `total`; 0 without one."""
        match self.fork:
            case Trunk() as trunk:
                return trunk.steps_of(total)
            case str() as fork:
                return forks.parse_fork(fork).step
        return 0

    @property
    def family_key(self) -> str:
        """The name of the parameter that figures colour by."""
        return self.family or next(iter(choosers.corners(self.space)[0]))

    def choices(self) -> Iterator[Params]:
        """The choices of the trials in their order, one after the other; where the search decides as it goes, corners of the space."""
        match self.search:
            case Grid():
                yield from choosers.grid(self.space)
            case Random(trials=count, seed=seed) | Population(size=count, seed=seed):
                yield from (choosers.draw(self.space, seed=seed, number=i) for i in range(count))
            case Tpe():
                yield from choosers.corners(self.space)

    def listed(self) -> list[tuple[Params, int]] | None:
        """(choice, seed) of every trial, where they are known beforehand; None where the search decides as it goes."""
        if isinstance(self.search, Tpe):
            return None
        base_seed = int(self.base().get("seed", 0))
        seeds = range(self.seeds)
        return [(params, base_seed + offset) for params in self.choices() for offset in seeds]

    @property
    def seeds(self) -> int:
        """The number of seeds that every choice is repeated over."""
        return self.search.seeds if isinstance(self.search, Grid | Random) else 1

    @property
    def num_trials(self) -> int:
        """The number of trials."""
        match self.search:
            case Grid(seeds=seeds):
                return seeds * len(choosers.grid(self.space))
            case Random(trials=trials, seeds=seeds):
                return seeds * trials
            case Tpe(trials=trials):
                return trials
            case Population(size=size):
                return size

    def check(self) -> None:
        """Raise `InputError` for what cannot work, before anything starts."""
        naming.check_name(self.name, "a sweep's name", longest=naming.LONGEST - naming.ADDED)
        if not self.objectives:
            raise InputError(f"sweep '{self.name}' names no objective: give at least one")
        spaces.check(self.space)
        corners = choosers.corners(self.space)
        names = list(dict.fromkeys(name for params in corners for name in params))
        if self.family is not None and self.family not in names:
            raise InputError(f"family '{self.family}' is not in the space: one of {', '.join(names)}")
        if self.num_trials < 1:
            raise InputError(f"sweep '{self.name}' has no trials: raise search.trials")
        if isinstance(self.search, Population) and (self.stopping or self.search.size < 2):
            raise InputError("a population needs at least two members and no early stopping beside it")
        if self.fork is not None and getattr(self.search, "seeds", 1) > 1:
            raise InputError(
                f"sweep '{self.name}': the trials of a fork have their trunk's seed: leave search.seeds at 1, and fork a trunk of each "
                "seed in a sweep of its own"
            )
        # Every option and both ends of every range must be a recipe, before the first trial starts.
        base = self.base()
        for params in corners:
            try:
                recipe = self.recipe_of(params, base=base)
            except InputError as error:
                raise InputError(f"sweep '{self.name}' with {described(params)}: {error}") from None
            self._check_task(recipe)
            self._check_stopping(recipe)

    def _check_stopping(self, recipe: Recipe) -> None:
        if self.stopping is None:
            return
        if recipe.steps is None:
            raise InputError(
                "early stopping compares trials at equal steps: give the recipe 'steps', not 'epochs'"
            )
        if isinstance(self.stopping, FrontStopping):
            self.stopping.rungs(recipe.steps, self.shared_steps(recipe.steps))

    def _check_task(self, recipe: Recipe) -> None:
        trains = f"recipe '{recipe.name}' trains a {recipe.task.kind}"
        if not task_of(recipe).curves:
            raise InputError(f"sweep '{self.name}': {trains}, neither a tokenizer nor a generator")
        for objective in self.objectives:
            if objective.task != recipe.task.kind:
                raise InputError(
                    f"sweep '{self.name}': objective {objective.name} is of {objective.task}s, but {trains}"
                )
        known = recipe.evaluation.allocators or tuple(KINDS)
        for objective in self.objectives:
            at = objective.at
            if at is not None and (at.budget not in recipe.evaluation.budgets or at.allocator not in known):
                raise InputError(
                    f"sweep '{self.name}': objective {objective.name} needs {at.budget:g} in evaluation.budgets and {at.allocator} in "
                    f"evaluation.allocators; they are {list(recipe.evaluation.budgets)} and {', '.join(known)}"
                )
        if isinstance(self.search, Population) and recipe.cluster.workers > 1:
            raise InputError("population-based training needs trials of one worker: set cluster.workers=1")


def described(params: Params) -> str:
    """The choice in one line."""
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in params.items()
    )


def named(params: Params) -> dict[str, str]:
    """Choices as tags of a trial's MLflow run."""
    return {f"sweep.{key}": str(value) for key, value in params.items()}
