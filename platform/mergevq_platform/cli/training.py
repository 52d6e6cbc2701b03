"""`mergevq train`, `recipes` and `import-official`: training, packaged recipes, checkpoints of the official release."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergevq.errors import InputError
from mergevq.hub import on_hub
from mergevq_platform.cli.in_use import tracking_link
from mergevq_platform.cli.paths import user_path
from mergevq_platform.cli.verbs import add_verb
from mergevq_platform.distributed.failures import INTERRUPTED
from mergevq_platform.storage.credentials import without_credentials
from mergevq_platform.storage.settings import read_settings

if TYPE_CHECKING:
    from mergevq_platform.distributed.trainer import Outcome


def add(verbs: Any) -> None:
    """Add the verbs of this module to the command line's."""
    _add_train(verbs)
    _add_import_official(verbs)
    _add_recipes(verbs)


def _add_train(verbs: Any) -> None:
    train = add_verb(
        verbs,
        "train",
        help="train on Ray, measure the curve, record it in MLflow",
        description="Train a recipe on this machine or on the cluster of RAY_ADDRESS. Ctrl-C leaves a resumable run.",
        examples=[
            "mergevq train demo steps=200",
            "mergevq train --resume RUN",
            "mergevq train --fork RUN@300 task.losses.entropy.weight=0.05",
            "mergevq train demo --urgent",
        ],
    )
    train.add_argument(
        "recipe", nargs="?", help="a recipe file or the name of a packaged recipe (mergevq recipes)"
    )
    train.add_argument("overrides", nargs="*", default=[], metavar="a.b=c", help="recipe keys to change")
    train.add_argument("--resume", metavar="RUN", help="go on with a run; its stored recipe is used")
    train.add_argument(
        "--fork",
        metavar="RUN@STEP",
        help="go on from this checkpoint of another run as a run of its own, with its recipe or one that differs in what may "
        "change in mid-run: kept counts, loss weights, rates",
    )
    train.add_argument("--name", help="the run's name (default: recipe, time, four letters)")
    train.add_argument(
        "--storage",
        help="where checkpoints go: path, s3://…, gs://… (default MERGEVQ_STORAGE, else runs/ray)",
    )
    train.add_argument("--address", help="Ray cluster (default RAY_ADDRESS, else this machine)")
    place = train.add_mutually_exclusive_group()
    place.add_argument(
        "--urgent",
        action="store_true",
        help="sweeps and yielding trainings of the cluster make room, and go on after this run",
    )
    place.add_argument(
        "--yielding",
        action="store_true",
        help="make room for urgent runs of the cluster: a checkpoint, and on after them (cluster.yields=true)",
    )
    train.add_argument("--no-evaluation", action="store_true", help="do not measure the curve at the end")
    train.add_argument(
        "--register", metavar="NAME[@ALIAS]", help="register the finished tokenizer as this MLflow model"
    )
    train.set_defaults(function=_train)


def _add_import_official(verbs: Any) -> None:
    official = add_verb(
        verbs,
        "import-official",
        help="a checkpoint of the official MergeVQ release -> ours",
        description="Turn a checkpoint of the official MergeVQ release into a tokenizer's folder that every verb takes.",
        examples=["mergevq import-official released.ckpt imported --config released.yaml"],
    )
    official.add_argument("checkpoint", type=user_path, help="the release's file of weights")
    official.add_argument("out", type=user_path, help="the tokenizer's new folder")
    official.add_argument("--config", type=user_path, help="the release's own YAML of that checkpoint")
    official.add_argument("--preset", help="instead of --config: one of our presets")
    official.add_argument("--raw", action="store_true", help="take the raw weights, not the EMA ones")
    official.set_defaults(function=_import_official)


def _add_recipes(verbs: Any) -> None:
    recipes = add_verb(
        verbs,
        "recipes",
        help="list the packaged recipes, or print one complete",
        description="List the packaged recipes, each with a line on what it trains; or print one with all of its keys.",
        examples=["mergevq recipes", "mergevq recipes demo steps=200"],
    )
    recipes.add_argument("recipe", nargs="?", help="print this recipe, resolved")
    recipes.add_argument("overrides", nargs="*", default=[], metavar="a.b=c", help="recipe keys to change")
    recipes.set_defaults(function=_recipes)


def _recipe_words(options: argparse.Namespace) -> tuple[str | None, tuple[str, ...]]:
    """The recipe's file or name, None where a run has it, and the overrides."""
    # With --resume or --fork the positional recipe is left out, so its slot may hold the first override.
    words = [text for text in [options.recipe, *options.overrides] if text]
    overrides = tuple(text for text in words if "=" in text)
    names = [text for text in words if "=" not in text]
    if len(names) > 1:
        raise InputError(
            f"'{names[1]}' changes no key of the recipe '{names[0]}': write KEY=VALUE, such as steps=4"
        )
    if options.resume and options.fork:
        raise InputError(f"--resume {options.resume} goes on with a run as it is: leave --fork out")
    if bool(names) == bool(options.resume) and not options.fork:
        both = ", not both" if names else ""
        raise InputError(
            f"give a recipe (a file or a name; 'mergevq recipes' lists them), or --resume RUN{both}; --fork RUN@STEP has one"
        )
    return (names[0] if names else None), overrides


def _train(options: argparse.Namespace) -> int:
    from mergevq_platform import data, recipe
    from mergevq_platform.distributed import trainer
    from mergevq_platform.evaluation import api
    from mergevq_platform.storage import forks
    from mergevq_platform.storage.lookup import places_of_runs
    from mergevq_platform.tasks.task import task_of
    from mergevq_platform.tracking import models
    from mergevq_platform.tracking.store import Store

    name, overrides = _recipe_words(options)
    if options.yielding:
        overrides = (*overrides, "cluster.yields=true")
    home = read_settings().home
    if options.urgent and not (options.address or os.environ.get("RAY_ADDRESS")):
        options.address = _cluster_of(home)
    tracking_uri = read_settings().tracking_uri
    find_run = places_of_runs(home, lambda: Store.at(home, tracking_uri))
    given = recipe.load(name, overrides) if name else None
    if options.fork is not None:
        given = forks.forked(forks.parse_fork(options.fork), name, overrides, find_run)
    chosen = recipe.resolve(given, find_run=find_run) if given else None
    if name and (left := recipe.left_to_machine(name, overrides)):
        print(left)
    model, alias = models.parse_target(options.register) if options.register is not None else ("", None)
    if model and chosen is not None:
        _ = chosen.tokenizer  # only tokenizers can be registered: said now, not at the end
    samples = None
    if given is not None and task_of(given).reads_images:
        images = (
            chosen.data if chosen and on_hub(given.data.path) else given.data
        )  # as it was typed, but for a commit
        samples, said = data.open_and_describe(
            images.path, images.train_split, images.evaluation_split, images.reading
        )
        print(said)
        samples.require_whole_groups()
    outcome = trainer.train(
        chosen,
        samples=samples,
        home=home,
        storage=options.storage,
        name=options.name,
        resume=options.resume,
        overrides=overrides,
        address=options.address,
        tracking_uri=read_settings().tracking_uri,
        after=None if options.no_evaluation else api.after_training,
        urgent=options.urgent,
    )
    print(f"checkpoints: {without_credentials(outcome.run.location)}")
    if model and (outcome.undelivered or not outcome.stopped):
        _register(outcome, model, alias, options.storage)
    if outcome.stopped:
        print(f"stopped after step {outcome.step}; go on with: mergevq train --resume {outcome.run.name}")
    print(outcome.undelivered or tracking_link(outcome.experiment))
    return INTERRUPTED if outcome.stopped else 0


def _cluster_of(home: Path) -> str:
    from mergevq_platform.distributed import local_clusters

    address = local_clusters.the_one(home)
    if address is None:
        raise InputError(
            f"--urgent asks other work on a cluster to yield, and no command of {home} has one here: give --address (auto: the one on "
            "this machine) or RAY_ADDRESS"
        )
    return address


def _register(outcome: Outcome, model: str, alias: str | None, storage: str | None) -> None:
    from mergevq_platform.evaluation import registering

    name = outcome.run.name
    if outcome.undelivered:
        print(outcome.undelivered)
        and_alias = f" --alias {alias}" if alias else ""
        raise InputError(
            f"not registered, as the run is not in MLflow yet: afterwards mergevq register {name} --name {model}{and_alias}"
        )
    settings = read_settings()
    made = registering.register(
        name, model, home=settings.home, alias=alias, storage=storage, tracking_uri=settings.tracking_uri
    )
    print(f"registered: {made.uri}")


def _import_official(options: argparse.Namespace) -> None:
    from mergevq.official import import_official

    print(
        import_official(
            options.checkpoint,
            options.out,
            yaml=options.config,
            preset=options.preset,
            use_ema=not options.raw,
        )
    )


def _recipes(options: argparse.Namespace) -> None:
    from mergevq_platform import recipe
    from mergevq_platform.storage import checkpoints

    if options.recipe:
        print(checkpoints.recipe_yaml(recipe.load(options.recipe, options.overrides)), end="")
        return
    for name, path in recipe.packaged_recipes().items():
        print(f"{name:24} {recipe.read(path).get('description', '')}")
