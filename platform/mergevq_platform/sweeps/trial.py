"""One trial of a sweep: train a tokenizer or generator, measure the objectives on the way, measure its curve, leave a record.

Runs inside Ray Tune's process of the trial. A trial of one worker trains right there; one of several starts a Ray Train
group of its own, for which the trial itself holds no CPU.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ray import tune

from mergevq.config import to_tree
from mergevq_platform import loop
from mergevq_platform.distributed import trainer
from mergevq_platform.distributed.urgent_lease import Offer
from mergevq_platform.distributed.yielding import Yielder, give_way_on_cpus, job_of
from mergevq_platform.evaluation.api import leave, leave_allocators
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.rate_distortion_report import RateDistortionReport
from mergevq_platform.evaluation.report import EvaluationRecorder
from mergevq_platform.figures import save_png
from mergevq_platform.figures.compared import Evaluation
from mergevq_platform.figures.kept_counts import drawn_figure
from mergevq_platform.recipe import ResolvedRecipe, resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps.definition import Sweep, described, named
from mergevq_platform.sweeps.families import Families
from mergevq_platform.sweeps.finished import RECORD, Finished
from mergevq_platform.sweeps.objectives import UntrainedPoint
from mergevq_platform.sweeps.space import Params
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.sweeps.trial_host import TrialHost
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tasks.task import Worker, task_of
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.view_state import RUN_COLOUR_TAG

REPEAT = "repeat"  # in a configuration of Optuna's: how many earlier trials had the same choice
DELIVERY_SECONDS = (
    2.0  # that a trial which yields takes for its last records; the rest is delivered when it goes on
)


class TrainedTrial(NamedTuple):
    """A trial after its training, measured."""

    curve: Evaluation
    allocators: RateDistortionReport | None
    steps: int
    drawn: Counter[int]  # kept count -> the trial's own steps that drew it
    cpu_seconds: float | None = None  # of its training; None for a group of workers


def run_trial(config: dict[str, Any], *, sweep: Sweep, place: SweepSettings) -> None:
    """Ray Tune's function of a trial."""
    # Tune hands this process on to another trial: by default it gives this one 2 seconds to end, but a trial that is
    # stopped early delivers its records first, and the other trial would be lost.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
    params, seed, name = chosen(config, sweep, place)
    run = place.run(name)
    record = run.directory / RECORD
    if finished := Finished.load(record):
        tune.report({"step": finished.steps, **finished.objectives, "finished": True})
        return
    recipe = resolve(sweep.recipe_of(params, seed=seed, name=name), pins=sweep.pins)
    began = time.monotonic()
    train = _in_group if recipe.cluster.workers > 1 else _in_place
    trained = train(sweep, place, run, recipe, params)
    objectives = measured(sweep, trained.curve, place.reference, trained.allocators)
    Finished(
        name=name,
        params=params,
        seed=seed,
        steps=trained.steps,
        objectives=objectives,
        curve=asdict(trained.curve),
        drawn={str(keep): count for keep, count in sorted(trained.drawn.items())},
        seconds=time.monotonic() - began,
        cpu_seconds=trained.cpu_seconds,
        recipe=to_tree(recipe),
    ).save(record)
    tune.report({"step": trained.steps, **objectives, "finished": True})


def chosen(config: dict[str, Any], sweep: Sweep, place: SweepSettings) -> tuple[Params, int, str]:
    """(choice, seed, name of the run) of a trial's configuration."""
    params, number = params_and_number(config)
    listed = config.get("trial")
    repeat = (
        0 if sweep.fork is not None else config.get(REPEAT, 0)
    )  # trials of a fork have their trunk's seed
    seed = listed["seed"] if listed is not None else int(sweep.base().get("seed", 0)) + repeat
    return params, seed, trial_name(place.name, number)


def params_and_number(config: dict[str, Any]) -> tuple[Params, int]:
    """(choice, number) of a trial's configuration."""
    listed = config.get("trial")
    if listed is None:  # Optuna: the choice lies flat beside the number
        return {key: value for key, value in config.items() if key not in ("number", REPEAT)}, config[
            "number"
        ]
    return listed["params"], listed["number"]


def trial_name(sweep: str, number: int) -> str:
    """The name of a trial's run."""
    return f"{sweep}-{number:03d}"


def measured(
    sweep: Sweep, curve: Evaluation, reference: UntrainedPoint | None, allocators: RateDistortionReport | None
) -> dict[str, float]:
    """The sweep's objectives of a curve, and of allocators where it names some."""
    return {
        objective.name: objective.of(curve, reference)
        if objective.at is None
        else objective.at.of(allocators)
        for objective in sweep.objectives
    }


def _in_place(
    sweep: Sweep, place: SweepSettings, run: Run, recipe: ResolvedRecipe, params: Params
) -> TrainedTrial:
    run.directory.mkdir(parents=True, exist_ok=True)
    tags = trial_tags(sweep, place, params)
    with recorded(run, recipe, place, "trial", tags) as recorder, _handed() as handed:
        device = torch.device("cuda" if place.device == "cuda" else "cpu")
        names = tuple(objective.name for objective in sweep.objectives)
        host = TrialHost(
            run.directory,
            recorder=recorder,
            handed=handed,
            objectives=names,
            checkpoint_every=recipe.checkpoint_every,
        )
        if sweep.rung_steps is not None:
            host.measured = lambda directory, step: _rung(sweep, place, recipe, directory, step, recorder)
        if place.yields:
            give_way_on_cpus()
        before = time.process_time()
        with _yielder(sweep, place, run, recipe) as yielder:
            host.asked = lambda: yielder.asked_by
            host.report_unnoted()
            steps = loop.train(recipe, Worker(device=device), host)
            if host.lease is not None and steps != host.total_steps:
                _give_way(host, yielder, recorder, steps)
        spent = time.process_time() - before
        checkpoint = host.checkpoint(steps)
        stored_checkpoint(run, checkpoint)
        curve, allocators = _final(recipe, place, run, str(checkpoint), steps, recorder)
        drawn = _drawn(recipe, steps)
        _record_drawn(drawn, recorder, run)
        return TrainedTrial(curve, allocators, steps, drawn, spent)


def _yielder(sweep: Sweep, place: SweepSettings, run: Run, recipe: ResolvedRecipe) -> Yielder:
    """The trial's side of urgent jobs: what it holds, and would yield."""
    amounts = {"CPU": float(recipe.cluster.cpus_per_worker)}
    if place.device == "cuda":
        amounts["GPU"] = sweep.gpus_per_trial
    return Yielder(Offer(name=run.name, amounts=amounts, began=time.time(), yields=place.yields))


def _give_way(host: TrialHost, yielder: Yielder, recorder: LocalRecorder, step: int) -> None:
    """End this process for an urgent job: the trial goes on in another, from the checkpoint of this step."""
    assert host.lease is not None
    recorder.yielded(step, job_of(host.lease))
    recorder.flush(DELIVERY_SECONDS)
    yielder.gave(host.lease)
    host.give_way(step)


def _in_group(
    sweep: Sweep, place: SweepSettings, run: Run, recipe: ResolvedRecipe, params: Params
) -> TrainedTrial:
    begun = (run.directory / "recipe.yaml").is_file()
    found: dict[str, Any] = {}

    def watch(checkpoint: str, step: int, recorder: EvaluationRecorder) -> None:
        if sweep.rung_steps is not None and step < (recipe.steps or 0):
            with checkpoints.newest(checkpoint, files=checkpoints.MODEL) as directory:
                tune.report({"step": step, **_rung(sweep, place, recipe, directory, step, recorder)})

    def after(outcome: trainer.Outcome, recorder: EvaluationRecorder) -> None:
        with checkpoints.newest(outcome.run.newest_checkpoint(), files=checkpoints.MODEL) as directory:
            found["curve"], found["allocators"] = _final(
                recipe, place, run, str(directory), outcome.step, recorder
            )
        found["drawn"] = _drawn(recipe, outcome.step)
        _record_drawn(found["drawn"], recorder, run)

    outcome = trainer.train(
        None if begun else recipe,
        home=Path(place.home),
        storage=place.storage,
        name=run.name,
        resume=run.name if begun else None,
        tracking_uri=place.tracking_uri,
        after=after,
        watch=watch,
        kind="trial",
        parent=place.uid,
        tags=trial_tags(sweep, place, params),
    )
    return TrainedTrial(found["curve"], found["allocators"], outcome.step, found["drawn"])


def _rung(
    sweep: Sweep,
    place: SweepSettings,
    recipe: ResolvedRecipe,
    directory: Path,
    step: int,
    recorder: EvaluationRecorder,
) -> dict[str, float]:
    """The objectives on few images; recorded as `rung/<objective>`."""
    few = task_of(recipe).on_fewer_images(recipe, sweep.rung)
    evaluator = task_of(few).evaluator(few, str(directory), EvaluationOptions(step=step, device=place.device))
    curve: Evaluation = evaluator.report(recipe.name)
    allocators: RateDistortionReport | None = None
    if any(objective.at is not None for objective in sweep.objectives):
        settings = few.evaluation
        options = EvaluationOptions(
            step=step, device=place.device, budgets=settings.budgets, allocators=settings.allocators
        )
        allocators = task_of(few).evaluator(few, str(directory), options).report(recipe.name)
    values = measured(sweep, curve, place.reference, allocators)
    recorder.metrics(step, {f"rung/{name}": value for name, value in values.items()})
    return values


def _final(
    recipe: ResolvedRecipe,
    place: SweepSettings,
    run: Run,
    checkpoint: str,
    step: int,
    recorder: EvaluationRecorder,
) -> tuple[Evaluation, RateDistortionReport | None]:
    options = EvaluationOptions(step=step, device=place.device)
    evaluator = task_of(recipe).evaluator(recipe, checkpoint, options)
    report: Evaluation = evaluator.report(run.name)
    leave(report, evaluator, run.directory / report.folder, recorder, recipe.description, shown=False)
    return report, leave_allocators(recipe, checkpoint, options, run, recorder, shown=False)


def _drawn(recipe: ResolvedRecipe, steps: int) -> Counter[int]:
    # A pure function of (seed, step), so a resumed trial counts the same steps; those of a trunk were drawn by its own distribution.
    task, seed, first = recipe.task, recipe.seed, recipe.fork.step if recipe.fork else 0
    return Counter(keep for step in range(first, steps) if (keep := task.draw_keep(seed, step)) is not None)


def _record_drawn(drawn: Counter[int], recorder: EvaluationRecorder, run: Run) -> None:
    if not drawn:  # every image has its own count
        return
    path = run.directory / "curve" / "kept_counts_drawn.png"
    path.parent.mkdir(exist_ok=True)
    save_png(drawn_figure(drawn, run.name), path)
    recorder.artifact(path, "curve")


def stored_checkpoint(run: Run, checkpoint: Path) -> None:
    """Bring the last checkpoint to where the run's checkpoints belong, if that is not where it was written."""
    _, path = checkpoints.open_storage(checkpoints.inside(run.location, checkpoint.name))
    if Path(path) != checkpoint.resolve():
        checkpoints.bring(checkpoint, run.location)


@contextlib.contextmanager
def recorded(
    run: Run, recipe: ResolvedRecipe, place: SweepSettings, kind: str, tags: dict[str, str]
) -> Iterator[LocalRecorder]:
    """The recorder of a run of the sweep, which ends with it: finished or failed."""
    fingerprint = preflight(recipe).fingerprint
    (run.directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(recipe))
    start = run.start(recipe, place.tracking_uri, fingerprint=fingerprint, kind=kind, parent=place.uid)
    recorder = start.open()
    recorder.tags(tags)
    try:
        yield recorder
    except SystemExit:  # Tune ends it: stopped early, or about to go on as another member of a population
        recorder.close()
        raise
    except BaseException as error:
        recorder.tags({"mergevq.failure": f"{type(error).__name__}: {error}"[:500]})
        recorder.close("FAILED")
        raise
    recorder.close("FINISHED")


def trial_tags(sweep: Sweep, place: SweepSettings, params: Params) -> dict[str, str]:
    """The tags of a trial's MLflow run: its sweep, its choice, the colour of its family."""
    return {
        "mergevq.sweep": place.name,
        "mergevq.choice": described(params)[:500],
        RUN_COLOUR_TAG: Families.of(sweep).colour(params),
        **named(params),
    }


@contextlib.contextmanager
def _handed() -> Iterator[Path | None]:
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        yield None
    else:
        with checkpoint.as_directory() as directory:
            yield Path(directory)
