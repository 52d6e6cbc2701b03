"""The command line: `mergevq VERB …`. Every verb is a thin call of a function that Python can call as well.

Exit status: 0 done, 1 a failure of ours or of the machine, 2 something the user can put right, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from mergevq.errors import InputError
from mergevq_platform.failures import one_line, root_cause
from mergevq_platform.places import places


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit with its status."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status. Errors are one line on stderr unless `--debug` asks for the traceback."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse does not take up a verb's positional words again after an option; a.b=c may stand anywhere.
    if any(word.startswith("-") or "=" not in word for word in rest) or (rest and "overrides" not in options):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    try:
        options.function(options)
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        else:
            print(f"mergevq: {one_line(error)}", file=sys.stderr)
        return 2 if isinstance(root_cause(error), InputError | FileNotFoundError | PermissionError) else 1


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="mergevq",
        description="Train MergeVQ tokenizers on a Ray cluster and read what every kept token buys in MLflow.",
        epilog="Things are kept under runs/ (or MERGEVQ_HOME). MLFLOW_TRACKING_URI and RAY_ADDRESS point elsewhere.",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(title="verbs", required=True, metavar="VERB")

    data = verbs.add_parser("data", help="make, pack and inspect picture sets").add_subparsers(
        required=True, metavar="WHAT"
    )
    shapes = data.add_parser("shapes", help="procedural labelled pictures as Parquet shards")
    shapes.add_argument("directory", type=Path)
    shapes.add_argument("--images", type=int, default=6000, help="training pictures (default 6000)")
    shapes.add_argument(
        "--validation-images", type=int, default=1000, help="validation pictures (default 1000)"
    )
    shapes.add_argument("--size", type=int, default=32, help="side in pixels (default 32)")
    shapes.add_argument("--seed", type=int, default=0)
    shapes.set_defaults(function=_data_shapes)
    digits = data.add_parser("digits", help="scikit-learn's handwritten digits as Parquet shards")
    digits.add_argument("directory", type=Path)
    digits.add_argument("--size", type=int, default=32, help="side in pixels (default 32)")
    digits.set_defaults(function=_data_digits)
    pack = data.add_parser("pack", help="ImageFolder, ImageNet tree, tar or Parquet -> shards, resumable")
    pack.add_argument("source", type=Path)
    pack.add_argument("directory", type=Path)
    pack.add_argument("--size", type=int, help="resize the shorter side to this many pixels")
    pack.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="file name (or stem) and class of each picture, where folders do not say",
    )
    pack.add_argument(
        "--validation-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="hold out this share of the training pictures where the source has no validation split",
    )
    pack.add_argument("--seed", type=int, default=0, help="of the order and of what is held out")
    pack.add_argument("--serial", action="store_true", help="in this process, without Ray")
    pack.set_defaults(function=_data_pack)
    info = data.add_parser("info", help="rows, classes, shards; --sheet writes a contact sheet")
    info.add_argument("directory")
    info.add_argument("--sheet", type=Path, help="write a contact sheet PNG here")
    info.add_argument("--verify", action="store_true", help="compare every shard with its checksum")
    info.set_defaults(function=_data_info)

    train = verbs.add_parser(
        "train",
        help="train on Ray, measure the curve, record it in MLflow",
        description="Train a recipe on this machine or on the cluster of RAY_ADDRESS. Ctrl-C leaves a resumable run.",
    )
    train.add_argument(
        "recipe", nargs="?", help="a recipe file or the name of a packaged recipe (mergevq recipes)"
    )
    train.add_argument("overrides", nargs="*", metavar="a.b=c", help="recipe keys to change")
    train.add_argument("--resume", metavar="RUN", help="go on with a run; its stored recipe is used")
    train.add_argument("--name", help="the run's name (default: recipe, time, four letters)")
    train.add_argument("--storage", help="where checkpoints go: path, s3://…, gs://… (default runs/ray)")
    train.add_argument("--address", help="Ray cluster (default RAY_ADDRESS, else this machine)")
    train.add_argument("--no-evaluation", action="store_true", help="do not measure the curve at the end")
    train.set_defaults(function=_train)

    evaluate = verbs.add_parser(
        "evaluate", help="measure the curve of a run, a checkpoint or an imported tokenizer"
    )
    evaluate.add_argument(
        "run", help="a run's name, its directory, a checkpoint, an imported tokenizer's directory, or a URI"
    )
    evaluate.add_argument(
        "--keep", type=int, nargs="+", metavar="K", help="kept-token counts (default: the recipe's)"
    )
    evaluate.add_argument("--data", help="another data directory (default: the recipe's)")
    evaluate.add_argument(
        "--recipe", help="for an imported tokenizer: the recipe whose data and protocol to take"
    )
    evaluate.add_argument(
        "--workers", type=int, default=1, help="Ray workers (default 1); any number gives the same result"
    )
    evaluate.add_argument("--json", type=Path, help="write the curve as JSON here")
    evaluate.add_argument(
        "--out", type=Path, help="write figures and tables here (default: the run's curve-* folder)"
    )
    evaluate.add_argument("--storage", help="where the run's checkpoints lie (default runs/ray)")
    evaluate.add_argument("--address", help="Ray cluster (default RAY_ADDRESS, else this machine)")
    evaluate.add_argument("--no-tracking", action="store_true", help="do not record in MLflow")
    evaluate.set_defaults(function=_evaluate)

    reconstruct = verbs.add_parser(
        "reconstruct", help="originals, reconstructions and cluster maps side by side"
    )
    reconstruct.add_argument("checkpoint", help="a run, its directory, or a checkpoint directory")
    reconstruct.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    reconstruct.add_argument(
        "--keep", type=int, nargs="+", metavar="K", help="kept-token counts (default: six)"
    )
    reconstruct.add_argument("--out", type=Path, default=Path("reconstructions"))
    reconstruct.set_defaults(function=_reconstruct)

    official = verbs.add_parser(
        "import-official", help="a checkpoint of the official MergeVQ release -> ours"
    )
    official.add_argument("checkpoint", type=Path)
    official.add_argument("out", type=Path)
    official.add_argument("--config", type=Path, help="the release's own YAML of that checkpoint")
    official.add_argument("--preset", help="instead of --config: one of our presets")
    official.add_argument("--raw", action="store_true", help="take the raw weights, not the EMA ones")
    official.set_defaults(function=_import_official)

    recipes = verbs.add_parser("recipes", help="list the packaged recipes, or print one complete")
    recipes.add_argument("recipe", nargs="?", help="print this recipe, resolved")
    recipes.add_argument("overrides", nargs="*", metavar="a.b=c")
    recipes.set_defaults(function=_recipes)

    sweep = verbs.add_parser(
        "sweep",
        help="many trainings that differ in one question; ends with their Pareto picture",
        description="Run a sweep file (sweeps/*.py), or vary a recipe's keys from here with --over. "
        "Ctrl-C leaves a resumable sweep.",
    )
    sweep.add_argument("sweep", nargs="?", help="a sweep file; with --over: a recipe's file or name")
    sweep.add_argument("overrides", nargs="*", metavar="a.b=c", help="recipe keys to change in every trial")
    sweep.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="KEY=…",
        help="vary this key: A,B,C or LOW..HIGH or LOW..HIGH:log (again for more keys)",
    )
    sweep.add_argument("--trials", type=int, help="number of trials (default: the file's; --over ranges: 16)")
    sweep.add_argument("--seeds", type=int, help="repeat every choice over this many seeds")
    sweep.add_argument("--recipe", help="another base recipe than the sweep file's")
    sweep.add_argument("--resume", metavar="NAME", help="go on with a sweep")
    sweep.add_argument("--name", help="the sweep's name (default: file, time, four letters)")
    sweep.add_argument("--storage", help="where checkpoints go: path, s3://…, gs://… (default runs/ray)")
    sweep.add_argument("--address", help="Ray cluster (default RAY_ADDRESS, else this machine)")
    sweep.add_argument(
        "--concurrent", type=int, help="trials at once (default: as many as the cluster holds)"
    )
    sweep.set_defaults(function=_sweep)

    compare = verbs.add_parser("compare", help="curves of several runs and sweeps in one figure")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="runs, sweeps or curve.json files")
    compare.add_argument("--out", type=Path, default=Path("comparison"), help="folder (default comparison/)")
    compare.add_argument(
        "--paper", action="store_true", help="the paper's Table 4 beside them, on axes of its own"
    )
    compare.set_defaults(function=_compare)

    runs = verbs.add_parser("runs", help="the runs of the store").add_subparsers(
        required=True, metavar="WHAT"
    )
    listing = runs.add_parser("list", help="all runs, newest first")
    listing.add_argument("--experiment", help="only of this experiment")
    listing.set_defaults(function=_runs_list)
    showing = runs.add_parser("show", help="a run's choices, state and curve")
    showing.add_argument("run", help="name or id")
    showing.set_defaults(function=_runs_show)
    removing = runs.add_parser(
        "rm", help="move runs to the store's trash; --files deletes their checkpoints too"
    )
    removing.add_argument("runs", nargs="+", metavar="RUN", help="names or ids")
    removing.add_argument("--files", action="store_true", help="also delete runs/ray/NAME (for good)")
    removing.set_defaults(function=_runs_rm)

    sync = verbs.add_parser("sync", help="deliver to MLflow what an unreachable server missed")
    sync.add_argument("run", help="a run's name or directory")
    sync.set_defaults(function=_sync)

    ui = verbs.add_parser("ui", help="MLflow's pages over the store in use, opening on the curves")
    ui.add_argument("--port", type=int, help="default: 5000, or a free one")
    ui.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1; the pages have no login")
    ui.set_defaults(function=_ui)
    return parser


def _data_shapes(options: argparse.Namespace) -> None:
    from mergevq_platform import data

    data.write_shapes(
        options.directory,
        images=options.images,
        val_images=options.validation_images,
        size=options.size,
        seed=options.seed,
    )
    print(data.describe(options.directory))


def _data_digits(options: argparse.Namespace) -> None:
    from mergevq_platform import data

    data.write_digits(options.directory, size=options.size)
    print(data.describe(options.directory))


def _data_pack(options: argparse.Namespace) -> None:
    from mergevq_platform import cluster, data

    if not options.serial:
        cluster.connect(places().home)
    data.pack(
        options.source,
        options.directory,
        size=options.size,
        parallel=not options.serial,
        labels=options.labels,
        validation_fraction=options.validation_fraction,
        seed=options.seed,
    )
    print(data.describe(options.directory))


def _data_info(options: argparse.Namespace) -> None:
    from mergevq_platform import data

    print(data.describe(options.directory, sheet=options.sheet, verify=options.verify))


def _train(options: argparse.Namespace) -> None:
    from mergevq_platform import evaluation, recipe, trainer

    # With --resume the positional recipe is left out, so its slot may hold the first override.
    given = [text for text in [options.recipe, *options.overrides] if text]
    overrides = tuple(text for text in given if "=" in text)
    names = [text for text in given if "=" not in text]
    if bool(names) == bool(options.resume) or len(names) > 1:
        raise InputError("give one recipe (a file or a name; 'mergevq recipes' lists them), or --resume RUN")
    home = places().home
    outcome = trainer.train(
        recipe.load(names[0], overrides) if names else None,
        home=home,
        storage=options.storage,
        name=options.name,
        resume=options.resume,
        overrides=overrides,
        address=options.address,
        tracking_uri=places().tracking_uri,
        after=None if options.no_evaluation else evaluation.after_training,
    )
    print(f"checkpoints: {outcome.run.location}")
    if outcome.stopped:
        print(f"stopped after step {outcome.step}; go on with: mergevq train --resume {outcome.run.name}")
    print(_where(outcome.experiment))


def _evaluate(options: argparse.Namespace) -> None:
    from mergevq_platform import evaluation

    home = places().home
    curve = evaluation.evaluate(
        options.run,
        home=home,
        keeps=tuple(options.keep) if options.keep else None,
        data=options.data,
        recipe=options.recipe,
        workers=options.workers,
        out=options.out,
        storage=options.storage,
        address=options.address,
        tracking_uri=None if options.no_tracking else places().tracking_uri,
        track=not options.no_tracking,
    )
    if options.json:
        curve.save(options.json)


def _reconstruct(options: argparse.Namespace) -> None:
    from mergevq_platform import evaluation

    for path in evaluation.reconstruct(
        options.checkpoint, options.images, home=places().home, keeps=options.keep, out=options.out
    ):
        print(path)


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
    from mergevq_platform import checkpoints, recipe

    if options.recipe:
        print(checkpoints.recipe_yaml(recipe.load(options.recipe, options.overrides)), end="")
        return
    for name, path in recipe.packaged_recipes().items():
        print(f"{name:24} {recipe.read(path).get('description', '')}")


def _where(experiment: str, run: str | None = None) -> str:
    from mergevq_platform.tracking.store import Store
    from mergevq_platform.tracking.ui import where_to_look

    return where_to_look(Store.at(places().home, places().tracking_uri), experiment, run)


def _sweep(options: argparse.Namespace) -> None:
    from mergevq_platform.sweeps import definition, driver, report

    home = places().home
    given = [text for text in [options.sweep, *options.overrides] if text]
    overrides = [text for text in given if "=" in text]
    names = [text for text in given if "=" not in text]
    if bool(names) == bool(options.resume) or len(names) > 1:
        raise InputError(
            "give one sweep file (those in sweeps/ to begin with), a recipe with --over, or --resume NAME"
        )
    chosen = None
    if names:
        chosen = (
            definition.from_dimensions(names[0], options.over) if options.over else definition.load(names[0])
        )
        chosen = definition.changed(
            chosen, overrides, recipe=options.recipe, trials=options.trials, seeds=options.seeds
        )
    outcome = driver.sweep(
        chosen,
        home=home,
        name=options.name,
        resume=options.resume,
        storage=options.storage,
        address=options.address,
        tracking_uri=places().tracking_uri,
        concurrent=options.concurrent,
    )
    name = outcome.place.name
    if outcome.finished:
        report.show(outcome.definition, outcome.finished)
        print(f"pictures: {outcome.files['pareto.png']}  {outcome.files['curves.png']}")
        print(f"winner: mergevq train {outcome.files['winner.yaml']}")
    if outcome.stopped_early:
        print(f"stopped early: {', '.join(outcome.stopped_early)}")
    for trial, reason in outcome.failed.items():
        print(f"failed: {trial}: {reason}", file=sys.stderr)
    if not outcome.complete:
        print(f"stopped before its end; go on with: mergevq sweep --resume {name}")
    print(_where(outcome.experiment, outcome.place.name))
    if outcome.complete and not outcome.finished:
        raise RuntimeError(f"no trial of sweep '{name}' finished")


def _compare(options: argparse.Namespace) -> None:
    from mergevq_platform import comparing

    home = places().home
    files = comparing.compare(options.runs, home=home, out=options.out, paper=options.paper)
    comparing.show(options.runs, home=home)
    for path in files.values():
        print(path)


def _runs_list(options: argparse.Namespace) -> None:
    import time

    from rich.console import Console
    from rich.table import Table

    from mergevq_platform.tracking.listing import list_runs
    from mergevq_platform.tracking.store import Store

    table = Table()
    for title in ("run", "kind", "state", "curve", "began"):
        table.add_column(title, no_wrap=title != "run", overflow="fold")
    for run in list_runs(Store.at(places().home, places().tracking_uri), options.experiment):
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started_ms / 1000))
        table.add_row(run.name, run.kind, run.status.lower(), "yes" if run.has_curve else "", began)
    Console().print(table)


def _runs_show(options: argparse.Namespace) -> None:
    from mergevq_platform.tracking.listing import find_run, stored_curve
    from mergevq_platform.tracking.store import Store

    store = Store.at(places().home, places().tracking_uri)
    run = find_run(store, options.run)
    print(f"{run.name}  {run.kind}  {run.status.lower()}  experiment {run.experiment}  id {run.run_id}")
    for key, value in sorted(run.params.items()):
        print(f"  {key} = {value}")
    for key, points in stored_curve(store, run).items():
        print(f"  {key}: " + "  ".join(f"{keep}: {value:.4g}" for keep, value in points.items()))


def _runs_rm(options: argparse.Namespace) -> None:
    import shutil

    from mergevq_platform.tracking.listing import find_run, remove_run
    from mergevq_platform.tracking.store import Store

    home = places().home
    store = Store.at(home, places().tracking_uri)
    for run in [find_run(store, name) for name in options.runs]:
        remove_run(store, run)
        print(f"{run.name}: in the store's trash")
        directory = home / "ray" / run.name
        if options.files and directory.is_dir():
            shutil.rmtree(directory)
            print(f"{directory}: deleted")


def _sync(options: argparse.Namespace) -> None:
    from mergevq_platform.runs import Run
    from mergevq_platform.tracking.store import Store
    from mergevq_platform.tracking.writer import sync

    run = Run.find(options.run, home=places().home)
    print(sync(run.directory, Store.at(places().home, places().tracking_uri)))


def _ui(options: argparse.Namespace) -> None:
    from mergevq_platform.tracking.store import Store
    from mergevq_platform.tracking.ui import serve_ui

    status = serve_ui(Store.at(places().home, places().tracking_uri), host=options.host, port=options.port)
    if status:
        raise RuntimeError("MLflow's server ended by itself")


if __name__ == "__main__":
    main()
