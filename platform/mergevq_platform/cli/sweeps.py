"""`mergevq sweep` and `compare`: many trainings, one figure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergevq.errors import InputError
from mergevq_platform.cli.in_use import store_in_use, tracking_link
from mergevq_platform.cli.numbers import count
from mergevq_platform.cli.paths import user_path
from mergevq_platform.cli.verbs import add_verb
from mergevq_platform.distributed.failures import INTERRUPTED
from mergevq_platform.storage.settings import read_settings

if TYPE_CHECKING:
    from mergevq_platform.sweeps.definition import Sweep


def add(verbs: Any) -> None:
    """Add the verbs of this module to the command line's."""
    _add_sweep(verbs)
    _add_compare(verbs)


def _add_sweep(verbs: Any) -> None:
    sweep = add_verb(
        verbs,
        "sweep",
        help="many trainings that differ in one question; ends with their Pareto front",
        description="Run a sweep file (sweeps/*.py), or vary a recipe's keys from here with --over. "
        "Ctrl-C leaves a resumable sweep.",
        examples=[
            "mergevq sweep sweeps/smoke.py",
            "mergevq sweep demo --over optimizer.learning_rate=1e-4..1e-2:log --trials 8",
            "mergevq sweep demo --over task.losses.entropy.weight=0.01,0.02,0.1 --fork 50%",
            "mergevq sweep --resume NAME --more 8",
        ],
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
    sweep.add_argument(
        "--trials", type=count, help="number of trials (default: the file's; --over ranges: 16)"
    )
    sweep.add_argument("--seeds", type=count, help="repeat every choice over this many seeds")
    sweep.add_argument(
        "--stopping",
        metavar="KIND[:STEPS]",
        help="stop trials early at equal steps, by the 'front' of all objectives or by the 'first' objective, or 'none' "
        "(default: the file's; --over: none); STEPS to the first comparison (default: the file's, else a quarter of a trial)",
    )
    sweep.add_argument(
        "--fork",
        metavar="RUN@STEP",
        help="trials go on from this checkpoint of a run, whose recipe is the base where none is named; or 50%%: from a trunk that is "
        "trained first, that share of the steps",
    )
    sweep.add_argument("--recipe", help="another base recipe than the sweep file's")
    sweep.add_argument("--resume", metavar="NAME", help="go on with a sweep")
    sweep.add_argument(
        "--more",
        type=count,
        metavar="N",
        help="with --resume: N more choices for a random or TPE sweep that has ended, which goes on searching where it was",
    )
    sweep.add_argument("--name", help="the sweep's name (default: file, time, four letters)")
    sweep.add_argument(
        "--storage",
        help="where checkpoints go: path, s3://…, gs://… (default MERGEVQ_STORAGE, else runs/ray)",
    )
    sweep.add_argument("--address", help="Ray cluster (default RAY_ADDRESS, else this machine)")
    sweep.add_argument(
        "--concurrent", type=count, help="trials at once (default: as many as the cluster holds)"
    )
    sweep.set_defaults(function=_sweep)


def _add_compare(verbs: Any) -> None:
    compare = add_verb(
        verbs,
        "compare",
        help="curves of several runs and sweeps in one figure",
        description="Lay the curves of runs and sweeps over each other: figures, an HTML page, a table, every point as CSV. Two sweeps "
        "or more show a Pareto front each, with its hypervolume up to one reference point. A forked sweep beside one of the "
        "same choices trained whole is judged: do forked trials rank as whole trainings do?",
        examples=[
            "mergevq compare RUN RUN --out comparison",
            "mergevq compare SWEEP SWEEP --out sweeps",
            "mergevq compare FORKED WHOLE --out forking",
        ],
    )
    compare.add_argument("runs", nargs="+", metavar="RUN", help="runs, sweeps or curve.json files")
    compare.add_argument(
        "--out", type=user_path, default=Path("comparison"), help="folder (default comparison/)"
    )
    compare.add_argument(
        "--paper", action="store_true", help="the paper's Table 4 beside them, on axes of its own"
    )
    compare.set_defaults(function=_compare)


def _sweep(options: argparse.Namespace) -> int:
    from mergevq_platform.storage import forks
    from mergevq_platform.storage.lookup import places_of_runs
    from mergevq_platform.sweeps import driver, report
    from mergevq_platform.sweeps.stopped import stopped_sentence

    home = read_settings().home
    given = [text for text in [options.sweep, *options.overrides] if text]
    overrides = [text for text in given if "=" in text]
    names = [text for text in given if "=" not in text]
    if options.fork and options.over and not (names or options.resume):
        names = [forks.recipe_file(options.fork, places_of_runs(home, store_in_use))]
    if bool(names) == bool(options.resume) or len(names) > 1:
        raise InputError(
            "give one sweep file (those in sweeps/ to begin with), a recipe with --over, or --resume NAME"
        )
    if options.resume and options.fork:
        raise InputError(f"--resume {options.resume} goes on with a sweep as it began: leave --fork out")
    if options.more and not options.resume:
        raise InputError(f"--more {options.more} adds to a sweep that has ended: name it with --resume NAME")
    chosen = _chosen(names[0], overrides, options) if names else None
    outcome = driver.sweep(
        chosen,
        home=home,
        name=options.name,
        resume=options.resume,
        more=options.more,
        storage=options.storage,
        address=options.address,
        tracking_uri=read_settings().tracking_uri,
        concurrent=options.concurrent,
    )
    name = outcome.settings.name
    if outcome.finished:
        report.show(outcome.definition, outcome.finished)
        for line in report.remarks(outcome.files):
            print(line)
        if "pareto.png" in outcome.files:
            print(f"figures: {outcome.files['pareto.png']}  {outcome.files['curves.png']}")
        if "winner.yaml" in outcome.files:
            print(f"winner: mergevq train {outcome.files['winner.yaml']}")
    if outcome.stopped_early:
        trials = list(outcome.stopped_early.values())
        print(f"stopped early: {', '.join(f'{trial.name} after step {trial.step}' for trial in trials)}")
        print(stopped_sentence(trials, outcome.finished))
    for trial, reason in outcome.failed.items():
        print(f"failed: {trial}: {reason}", file=sys.stderr)
    if not outcome.complete:
        print(f"stopped before its end; go on with: mergevq sweep --resume {name}")
    print(outcome.undelivered or tracking_link(outcome.experiment, outcome.settings.name))
    if outcome.complete and not outcome.finished:
        raise RuntimeError(f"no trial of sweep '{name}' finished")
    return 0 if outcome.complete else INTERRUPTED


def _chosen(source: str, overrides: list[str], options: argparse.Namespace) -> Sweep:
    from mergevq_platform.sweeps import loading

    return loading.opened(
        source,
        options.over,
        overrides,
        recipe=options.recipe,
        trials=options.trials,
        seeds=options.seeds,
        stopping=options.stopping,
        fork=options.fork,
    )


def _compare(options: argparse.Namespace) -> None:
    from mergevq_platform.evaluation import compare
    from mergevq_platform.sweeps import fairness

    home, uri = read_settings().home, read_settings().tracking_uri
    found = compare.collected(options.runs, home=home, tracking_uri=uri)
    files = compare.write(found, options.out, paper=options.paper)
    compare.show(found)
    if judged := fairness.between(options.runs, home):
        files["fork_fairness.md"] = options.out / "fork_fairness.md"
        files["fork_fairness.md"].write_text("\n".join(sweep.markdown() for sweep in judged))
        print(files["fork_fairness.md"].read_text())
    for path in files.values():
        print(path)
