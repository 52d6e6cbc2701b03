"""Resolution of a recipe: presets, checks, absolute paths, and the hashes of upstream models and weights.

Recipe files, command-line overrides and a sweep's trials all pass through `complete`. A recipe to be run passes through
`resolve` once, in the driver. The tree of the resolved recipe is stored in every checkpoint and in MLflow; `parse_resolved` reads it again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from mergevq.config import Tree, config, flattened, merged, parse, to_tree, with_overrides
from mergevq.errors import InputError
from mergevq.hub import Kind, on_hub
from mergevq.paths import PathKind
from mergevq.tokenizer import TokenizerConfig
from mergevq.weights_file import file_sha256
from mergevq_platform import tasks
from mergevq_platform.recipe.files import read
from mergevq_platform.recipe.paths import hash_field, named_paths, path_keys
from mergevq_platform.recipe.precision import choose
from mergevq_platform.recipe.schema import Recipe, ResolvedRecipe
from mergevq_platform.recipe.task_config import TaskConfig
from mergevq_platform.storage import hub
from mergevq_platform.storage.credentials import keys_with_credentials
from mergevq_platform.storage.settings import read_settings

R = TypeVar("R", bound=Recipe)
FindRun = Callable[[str], str]  # what lies at the name of a run
HUB_KINDS: dict[PathKind, Kind] = {
    PathKind.DATA: "dataset",
    PathKind.CODES: "dataset",
    PathKind.RUN: "model",
}
RENAMED = {"data": {"bad_picture_limit": "bad_image_limit"}}  # section -> key of earlier recipes -> key


def load(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The complete recipe of a file, or of a packaged recipe by name, with `a.b=c` overrides laid over it."""
    return complete(with_overrides(read(name_or_path), overrides))


def machine_choices(tree: Mapping[str, Any]) -> list[str]:
    """What `auto` stands for in the precision and the layout of a recipe's tree, as overrides; empty where it says both itself."""
    named = [key for key in ("precision", "channels_last") if tree.get(key) == "auto"]
    if not named:
        return []
    made = to_tree(complete(tree))
    return [f"{key}={str(made[key]).lower()}" for key in named]


def left_to_machine(name_or_path: str | Path, overrides: Iterable[str] = ()) -> str | None:
    """What `auto` stands for in a recipe, in one line with its reason; None where the recipe says all itself."""
    tree = with_overrides(read(name_or_path), overrides)
    choices = machine_choices(tree)
    if not choices:
        return None
    reason = f": {choose(complete(tree).cluster.device).reason}" if tree.get("precision") == "auto" else ""
    return f"auto: {' '.join(choices)}{reason}"


def complete(tree: Mapping[str, Any]) -> Recipe:
    """A recipe from its tree: presets are written out under what the tree says, defaults are filled in, all is checked.

    Nothing is opened or looked for. Raises `InputError` for unknown keys and values that do not fit.
    """
    return _complete(Recipe, tree)


def parse_resolved(tree: Mapping[str, Any]) -> ResolvedRecipe:
    """The recipe that a driver resolved, from its tree. Nothing is opened or looked for."""
    return _complete(ResolvedRecipe, tree)


@dataclass(frozen=True)
class Pins:
    """Resolved locations and hashes, for recipes that name the same paths: these need not be resolved again."""

    paths: dict[str, str]  # of the recipe before
    found: Tree  # key -> value, what was added to it

    @classmethod
    def between(cls, before: Recipe, after: ResolvedRecipe) -> Pins:
        """The pins of a recipe, from the recipe with absolute paths and the same recipe resolved.

        What it takes from a run is none of them: the next recipe may say more of it, and reads the run at its pinned location.
        """
        given = flattened(to_tree(before))
        resolved = flattened(to_tree(after))
        found = {key: resolved[key] for key in given if key in resolved and given[key] != resolved[key]}
        return cls(_paths(before), found)

    def applied_to(self, recipe: Recipe) -> Recipe:
        """The recipe with these pins, if it builds on the same models; else unchanged."""
        if _paths(recipe) != self.paths:
            return recipe
        tree = to_tree(recipe)
        for key, value in self.found.items():
            _set(tree, key, value)
        return _parse(Recipe, tree)


def resolve(
    recipe: Recipe | Mapping[str, Any],
    folder: str | Path | None = None,
    *,
    find_run: FindRun | None = None,
    pins: Iterable[Pins] = (),
) -> ResolvedRecipe:
    """The recipe with absolute paths, and with the hashes of the models and weights that it builds on.

    Paths start from `folder` (None: the working directory); `find_run` turns the name of a run into its location. A model with a
    hash, of its own or of `pins`, is not looked for. Addresses of the Hub get their commit. Raises `InputError` for a model that is
    not there, or is another than the recipe's hash says.
    """
    located = locate(recipe if isinstance(recipe, Recipe) else complete(recipe), folder)
    for known in pins:
        located = known.applied_to(located)
    located = _with_commits(located)
    if find_run is not None:
        located = _with_runs(located, find_run)
    # A section may have taken from a run what it left out: paths again, and the sizes that follow from the model.
    located = locate(complete(to_tree(located) | {"task": to_tree(located.task.pin())}), folder)
    return parse_resolved(_with_hashes(located, to_tree(located)))


def locate(recipe: R, folder: str | Path | None = None) -> R:
    """The recipe with absolute paths for files and folders relative to `folder` (None: the working directory).

    Workers and trials run in directories of their own. Files of weights are looked for in the folder `MERGEVQ_WEIGHTS` too.
    Names of what is not there stay: a URI, or a mistake, which is reported under the name that was given.
    """
    start = Path.cwd() if folder is None else Path(folder)
    weights = read_settings().weights
    tree = to_tree(recipe)
    for key, kind, path, _ in named_paths(recipe):
        if "://" in path:
            continue
        written = os.path.expanduser(path)
        # An absolute path stays what it is when it is joined to another.
        known = [start / written]
        if weights and kind is PathKind.WEIGHTS:  # the path of another machine is a name here
            known += [weights / written, weights / Path(written).name]
        _set(tree, key, next((str(place) for place in known if place.exists()), written))
    return _parse(type(recipe), tree)


def path_kind(key: str) -> PathKind | None:
    """The kind of the path at a dotted key, in a recipe of any task; None for another key."""
    sections = (Recipe, *(_section(cast(Hashable, _class(kind))) for kind in tasks.KINDS))
    return next((kinds[key] for kinds in map(path_keys, sections) if key in kinds), None)


def placeholder_task(model: TokenizerConfig) -> Tree:
    """The task of a tokenizer without a recipe: its model, and no setting of a training."""
    return {
        "kind": "tokenizer",
        "model": to_tree(model),
        "keep": {"kind": "list", "merge_ratios": [0.0]},
        "losses": {"alignment": {"kind": "none"}, "recovery": {"weight": 0.0}},
    }


def _complete(cls: type[R], tree: Mapping[str, Any]) -> R:
    tree = _renamed(tree)
    task = dict(tree.get("task") or {})
    task.setdefault("kind", "tokenizer")
    if task["kind"] in tasks.KINDS:
        task = _class(task["kind"]).complete(task)
    recipe = _parse(cls, {**tree, "task": task})
    for key, cleaned in keys_with_credentials(to_tree(recipe)):
        raise InputError(
            f"{key}: '{cleaned}' was given with credentials, and a recipe is stored with every run: leave them out and set them in "
            "the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://)"
        )
    filled: Tree = {}
    if "auto" in (recipe.precision, recipe.channels_last):
        machine = choose(recipe.cluster.device)
        precision = machine.precision if recipe.precision == "auto" else recipe.precision
        layout = machine.keeps_layout(precision) if recipe.channels_last == "auto" else recipe.channels_last
        filled |= {"precision": precision, "channels_last": layout}
    if recipe.micro_batch is None:
        filled["micro_batch"] = recipe.largest_micro_batch
    if views := recipe.task.complete_views(recipe.data.views):
        filled["data"] = {"views": views}
    return _parse(cls, merged(to_tree(recipe), filled)) if filled else recipe


def _parse(cls: type[R], tree: Mapping[str, Any]) -> R:
    kind = tree["task"]["kind"]
    if kind not in tasks.KINDS:
        known = ", ".join(f"'{known}'" for known in tasks.KINDS)
        raise InputError(f"'task.kind' is {kind!r}: it must be one of {known}")
    problems: list[str] = []
    task, section = TaskConfig(), _section(cast(Hashable, _class(kind).section(tree["task"])))
    try:
        task = cast(Any, parse(section, {"task": tree["task"]})).task
    except InputError as error:
        problems.append(str(error))
    try:
        recipe = parse(cls, {**tree, "task": task})
    except InputError as error:
        problems.append(str(error))
    if problems:
        raise InputError("; ".join(problems))
    return recipe


def _class(kind: str) -> type[TaskConfig]:
    return tasks.find(kind)


@cache
def _section(cls: Hashable) -> type:
    """The section of a recipe that holds a task of this class, so that mistakes in it are named by whole keys."""
    return config(type("TaskSection", (), {"__annotations__": {"task": cls}}))


def _renamed(tree: Mapping[str, Any]) -> Tree:
    renamed = dict(tree)
    for section, keys in RENAMED.items():
        given = renamed.get(section)
        if isinstance(given, Mapping):
            renamed[section] = {keys.get(key, key): value for key, value in given.items()}
    return renamed


def _with_commits(recipe: Recipe) -> Recipe:
    tree, found = to_tree(recipe), False
    for key, kind, path, _ in named_paths(recipe):
        if not on_hub(path):
            continue
        if kind not in HUB_KINDS:
            raise InputError(
                f"{key}: '{path}' is on the Hub, where only models and data sets are read: download {kind.value}, and name that"
            )
        found = True
        try:
            _set(tree, key, hub.pinned(path, HUB_KINDS[kind]))
        except InputError as error:
            raise InputError(f"{key}: {error}") from None
    return _parse(Recipe, tree) if found else recipe


def _with_runs(recipe: Recipe, find_run: FindRun) -> Recipe:
    tree = to_tree(recipe)
    for key, kind, path, _ in named_paths(recipe):
        if kind is PathKind.RUN:
            try:
                _set(tree, key, find_run(path))
            except InputError as error:
                raise InputError(f"{key}: {error}") from None
    return _parse(Recipe, tree)


def _with_hashes(recipe: Recipe, tree: Tree) -> Tree:
    """`tree` with the hash of every file of weights that is there and has none."""
    for named in named_paths(recipe):
        key = hash_field(named) if named.kind is PathKind.WEIGHTS else None
        if key and _value(tree, key) is None and Path(named.path).is_file():
            _set(tree, key, file_sha256(named.path))
    return tree


def _paths(recipe: Recipe) -> dict[str, str]:
    return {key: path for key, _, path, _ in named_paths(recipe)}


def _value(tree: Tree, key: str) -> Any:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value


def _set(tree: Tree, key: str, value: Any) -> None:
    outer, _, last = key.rpartition(".")
    (_value(tree, outer) if outer else tree)[last] = value
