"""`mergevq runs`, `register`, `push`, `cache`, `sync` and `ui`: runs, models registered or pushed, the cache, the tracking store."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from mergevq_platform.cli.in_use import store_in_use
from mergevq_platform.cli.paths import user_path
from mergevq_platform.cli.verbs import add_group, add_storage, add_verb
from mergevq_platform.storage.settings import read_settings


def add(verbs: Any) -> None:
    """Add the verbs of this module to the command line's."""
    _add_runs(verbs)
    _add_register(verbs)
    _add_push(verbs)
    _add_cache(verbs)
    _add_sync(verbs)
    _add_ui(verbs)


def _add_runs(verbs: Any) -> None:
    runs = add_group(
        verbs,
        "runs",
        help="the runs of the store",
        description="List the runs that the tracking store knows, show one, or remove some.",
        examples=["mergevq runs list"],
    )
    listing = add_verb(
        runs,
        "list",
        help="all runs, newest first",
        description="List trainings, sweeps, trials and evaluations with kind and state, newest first.",
        examples=["mergevq runs list --experiment mergevq"],
    )
    listing.add_argument("--experiment", help="only of this experiment")
    listing.set_defaults(function=_runs_list)
    showing = add_verb(
        runs,
        "show",
        help="a run's state, its curve and verdict; --recipe: its choices",
        description="Print the newest curve of a run and what it says; with --recipe every key that it was trained by.",
        examples=["mergevq runs show RUN --recipe"],
    )
    showing.add_argument("run", help="name or id")
    showing.add_argument(
        "--recipe", action="store_true", help="print every key of the recipe, after the curve"
    )
    showing.set_defaults(function=_runs_show)
    removing = add_verb(
        runs,
        "rm",
        help="move runs to the store's trash; --files deletes their checkpoints too",
        description="Move runs to MLflow's trash, from where mlflow gc removes them and MLflow's API restores them.",
        examples=["mergevq runs rm RUN --files"],
    )
    removing.add_argument("runs", nargs="+", metavar="RUN", help="names or ids")
    removing.add_argument("--files", action="store_true", help="also delete runs/ray/NAME (for good)")
    removing.set_defaults(function=_runs_rm)


def _add_register(verbs: Any) -> None:
    registering = add_verb(
        verbs,
        "register",
        help="a run's newest checkpoint as an MLflow model, with its curve and data",
        description="Register a tokenizer in MLflow's model registry; models:/NAME@ALIAS then names it for every verb.",
        examples=["mergevq register RUN --name shapes --alias champion"],
    )
    registering.add_argument("run", help="a run's name, id or directory")
    registering.add_argument("--name", required=True, help="of the registered model")
    registering.add_argument(
        "--alias", help="such as champion: then models:/NAME@champion names this version"
    )
    add_storage(registering)
    registering.set_defaults(function=_register)


def _add_push(verbs: Any) -> None:
    pushing = add_verb(
        verbs,
        "push",
        help="a tokenizer or generator to the Hugging Face Hub, with its recipe and a model card of its numbers",
        description="Push the averaged weights of a run's newest checkpoint, its recipe, its curve and a model card made of "
        "them. Places of this machine become names. A generator takes its tokenizer along. The token is that of hf auth login, "
        "or HF_TOKEN.",
        examples=[
            "mergevq push RUN hf://owner/name --private",
            'mergevq push RUN hf://owner/name --revision v2 --message "longer"',
        ],
    )
    pushing.add_argument(
        "run", help="a run's name, id or directory, a checkpoint, or an imported tokenizer's directory"
    )
    pushing.add_argument("target", metavar="hf://owner/name", help="the repository; made if it is not there")
    pushing.add_argument(
        "--revision", metavar="BRANCH", help="push to this branch, made if it is not there (default main)"
    )
    pushing.add_argument(
        "--private", action="store_true", help="make the repository private; one that is public is refused"
    )
    pushing.add_argument("--message", help="of the commit (default: the run and its step)")
    pushing.add_argument(
        "--license", default="apache-2.0", help="of the weights, by the Hub's name of it (default apache-2.0)"
    )
    pushing.add_argument(
        "--evaluation",
        type=user_path,
        metavar="DIR",
        help="a folder of mergevq evaluate, for the card (default: the run's own of this step, with the most rows)",
    )
    add_storage(pushing)
    pushing.set_defaults(function=_push)


def _add_cache(verbs: Any) -> None:
    cache = add_verb(
        verbs,
        "cache",
        help="what evaluations keep so as not to measure twice: show it, clear it",
        description="Show how large the cache of evaluations is, or delete it; evaluations then measure again.",
        examples=["mergevq cache clear"],
    )
    cache.add_argument(
        "what",
        nargs="?",
        choices=["show", "clear"],
        default="show",
        help="show its size (default), or delete it",
    )
    cache.set_defaults(function=_cache)


def _add_sync(verbs: Any) -> None:
    sync = add_verb(
        verbs,
        "sync",
        help="deliver to MLflow what an unreachable server missed",
        description="Deliver the records of a run that the tracking server has not taken yet. Nothing is delivered twice.",
        examples=["mergevq sync RUN"],
    )
    sync.add_argument("run", help="name or directory of a run or sweep; its trials and evaluations go along")
    sync.set_defaults(function=_sync)


def _add_ui(verbs: Any) -> None:
    ui = add_verb(
        verbs,
        "ui",
        help="MLflow's pages over the store in use, opening on the curves",
        description="Serve MLflow's pages over the runs of this home until Ctrl-C, and print the address of the curves.",
        examples=["mergevq ui --port 5000"],
    )
    ui.add_argument("--port", type=int, help="port to listen on (default 5000, or a free one)")
    ui.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default 127.0.0.1); 0.0.0.0: all addresses of this machine. The pages have no login; "
        "MLFLOW_SERVER_ALLOWED_HOSTS names further names that they answer to",
    )
    ui.set_defaults(function=_ui)


def _runs_list(options: argparse.Namespace) -> None:
    import time

    from rich.table import Table

    from mergevq_platform.evaluation.tables import print_table
    from mergevq_platform.tracking.listing import list_runs

    table = Table()
    for title in ("run", "kind", "state", "curve", "began"):
        table.add_column(title, no_wrap=title != "run", overflow="fold")
    for run in list_runs(store_in_use(), options.experiment):
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started_ms / 1000))
        table.add_row(run.name, run.kind, run.state, "yes" if run.has_curve else "", began)
    print_table(table)


def _runs_show(options: argparse.Namespace) -> None:
    from mergevq_platform.evaluation import report
    from mergevq_platform.evaluation.stored_reports import newest_rate_distortion, newest_report
    from mergevq_platform.tracking.listing import find_run, stored_curve

    store = store_in_use()
    run = find_run(store, options.run)
    print(f"{run.name}  {run.kind}  {run.state}  experiment {run.experiment}  id {run.run_id}")
    evaluated = newest_report(store, run, read_settings().home / "evaluations")
    if evaluated is not None:
        report.show_numbers(evaluated)
    elif curve := stored_curve(store, run):  # its file did not get there
        for key, points in curve.items():
            print(f"  {key}: " + "  ".join(f"{keep}: {value:.4g}" for keep, value in points.items()))
    elif run.kind == "sweep":
        print(
            f"winner: {run.tags.get('mergevq.winner', 'none yet')}  {run.tags.get('mergevq.winner_choice', '')}"
        )
        print(f"all trials' curves: mergevq compare {run.name}")
    else:
        print(f"not evaluated yet: mergevq evaluate {run.name}")
    if allocators := newest_rate_distortion(store, run, read_settings().home / "evaluations"):
        report.show_numbers(allocators)
    if options.recipe:
        print("\n".join(f"  {key} = {value}" for key, value in sorted(run.params.items())))
    else:
        print(f"recipe: {len(run.params)} keys; mergevq runs show {run.name} --recipe prints them")


def _runs_rm(options: argparse.Namespace) -> None:
    import shutil

    from mergevq_platform.tracking.listing import find_run, remove_run

    home = read_settings().home
    store = store_in_use()
    for run in [find_run(store, name) for name in options.runs]:
        remove_run(store, run)
        print(f"{run.name}: in the store's trash")
        directory = home / "ray" / run.name
        if options.files and directory.is_dir():
            shutil.rmtree(directory)
            print(f"{directory}: deleted")


def _register(options: argparse.Namespace) -> None:
    from mergevq_platform.evaluation import registering

    made = registering.register(
        options.run,
        options.name,
        home=read_settings().home,
        alias=options.alias,
        storage=options.storage,
        tracking_uri=read_settings().tracking_uri,
    )
    print(f"{made.uri}  version {made.version}, model {made.model_id}")


def _push(options: argparse.Namespace) -> None:
    from mergevq_platform.operations.publishing.push import push

    made = push(
        options.run,
        options.target,
        home=read_settings().home,
        revision=options.revision,
        private=options.private,
        message=options.message,
        license=options.license,
        evaluation=options.evaluation,
        storage=options.storage,
        tracking_uri=read_settings().tracking_uri,
        say=lambda text: print(text, file=sys.stderr),
    )
    print(f"pushed: {made.pinned}")
    print(f"page: {made.page}")
    print(made.loading)


def _cache(options: argparse.Namespace) -> None:
    from mergevq_platform.evaluation.cache import Cache

    cache = Cache.at(read_settings().home)
    size = cache.clear() if options.what == "clear" else cache.bytes
    done = "deleted from" if options.what == "clear" else f"of at most {cache.limit_bytes / 1e9:.0f} GB in"
    print(f"{size / 1e6:,.1f} MB {done} {cache.directory}")


def _sync(options: argparse.Namespace) -> None:
    from mergevq_platform.storage.runs import Run
    from mergevq_platform.tracking.undelivered import directory_of, sync_all

    home = read_settings().home
    directory = directory_of(options.run, home) or Run.find(options.run, home=home).directory
    for report in sync_all(directory, store_in_use()):
        print(report)


def _ui(options: argparse.Namespace) -> None:
    from mergevq_platform.tracking.ui import serve_ui

    status = serve_ui(store_in_use(), host=options.host, port=options.port)
    if status:
        raise RuntimeError("MLflow's server ended by itself")
