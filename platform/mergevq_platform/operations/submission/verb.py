"""A verb's words, checked on this machine before a cluster is asked."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergevq.errors import InputError
from mergevq.paths import PathKind
from mergevq_platform import recipe as recipes
from mergevq_platform.recipe import Recipe, named_paths
from mergevq_platform.storage import naming
from mergevq_platform.storage.credentials import refuse_credentials
from mergevq_platform.tracking.models import SCHEME, parse_target

NOT_JOBS = ("submit", "jobs", "ui")
BEGINNING = ("train", "sweep")  # verbs whose --name is a new run's
REMOTE = (PathKind.DATA, PathKind.CODES, PathKind.RUN)  # read by a job, uploaded by none


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A verb's words, and what they say about the run that they begin."""

    words: list[str]
    recipe: str | None = None
    name: str | None = None  # the run's, where the words give one
    names_a_run: bool = False  # takes --name, and none is given
    include: list[Path] = field(default_factory=list)  # files that its files name


def read_verb(words: Sequence[str], parse: Callable[[Sequence[str]], argparse.Namespace]) -> Verb:
    """Check a verb's words as the verb itself would, by `parse`, the command line's own parser.

    Raises `InputError` for what the verb would refuse, for secrets, and for relative paths of data and checkpoints.
    """
    words = list(words)
    if not words:
        raise InputError("name a verb after --, such as: mergevq submit -- train g_256_d64")
    if words[0] in NOT_JOBS:
        raise InputError(f"'{words[0]}' is not a verb that runs as a job")
    for word in words:
        refuse_credentials(
            word,
            "on the command line",
            "a job's command line is open to all who see the cluster; set them in the cluster's environment "
            "(AWS_ACCESS_KEY_ID …, MLFLOW_TRACKING_PASSWORD)",
        )
    options = parse(words)
    named, resumed = getattr(options, "name", None), getattr(options, "resume", None)
    if named is not None and words[0] in BEGINNING:
        naming.check_name(named, "--name", longest=naming.LONGEST - naming.ADDED)
    if getattr(options, "register", None) is not None:
        parse_target(options.register)
    takes_name = "name" in options and not named and not resumed
    given = [text for text in (getattr(options, "recipe", None), *getattr(options, "overrides", ())) if text]
    names = [text for text in given if "=" not in text]
    recipe, include = names[0] if names else None, list[Path]()
    if words[0] == "train" and names:
        chosen = recipes.load(names[0], [text for text in given if "=" in text])
        recipe, include = chosen.name, _uploaded_weights(chosen)
    elif words[0] == "sweep" and options.sweep:
        recipe, include = _read_sweep(options)
    else:
        return Verb(words=words, recipe=recipe, name=resumed or named)
    return Verb(words=words, recipe=recipe, name=named, names_a_run=takes_name, include=include)


def _read_sweep(options: argparse.Namespace) -> tuple[str, list[Path]]:
    """(name, files to upload) of a sweep: its recipe's file and the weights of every corner of its space."""
    from mergevq_platform.sweeps import choosers, loading

    chosen = loading.opened(
        options.sweep,
        options.over,
        [text for text in options.overrides if "=" in text],
        recipe=options.recipe,
        trials=options.trials,
        seeds=options.seeds,
    )
    weights = dict.fromkeys(
        file
        for params in choosers.corners(chosen.space)
        for file in _uploaded_weights(chosen.recipe_of(params))
    )
    # The recipe that a sweep file names may be a file beside it.
    beside = [Path(chosen.recipe)] if Path(chosen.recipe).is_file() and not options.over else []
    if beside and beside[0].is_absolute():
        raise InputError(
            f"{options.sweep} names the recipe {beside[0]}: name it relative to the working directory"
        )
    return chosen.name, [*beside, *weights]


def _uploaded_weights(recipe: Recipe) -> list[Path]:
    # A relative path means this machine's: small weights go along, images and runs do not.
    found, problems = [], []
    for key, kind, path, _ in named_paths(recipe):
        local = not Path(path).expanduser().is_absolute() and "://" not in path
        if not local or (kind is PathKind.RUN and _names_a_run(path)):
            continue
        if kind is PathKind.WEIGHTS and Path(path).is_file():
            found.append(Path(path))
        elif kind in REMOTE:
            problems.append(
                f"{key} is '{path}', a relative path: a job runs in a folder of its own, so name it where the cluster sees it, "
                f"{key}=/shared/… or a URI"
            )
        else:
            problems.append(f"{key} is '{path}', a relative path: name it where the cluster sees it")
    if problems:
        raise InputError("; ".join(problems))
    return found


def _names_a_run(path: str) -> bool:
    # The job looks the name up in its own home and tracking store.
    return path.startswith(SCHEME) or ("/" not in path and not Path(path).exists())
