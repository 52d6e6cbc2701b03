"""Evaluation by name of a run, a checkpoint or an imported tokenizer: look-up, evaluation, files, MLflow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol

import torch

from mergevq.errors import InputError
from mergevq.image_size import ImageSize
from mergevq.metrics import FeaturesConfig, write_reference
from mergevq_platform.allocation.allocator_ref import with_places
from mergevq_platform.distributed import cluster
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.extractor_choice import with_files
from mergevq_platform.evaluation.images import ImageSetsEvaluator
from mergevq_platform.evaluation.images_report import ImageSetsReport
from mergevq_platform.evaluation.images_worker import ImageSetsSpec, ImageSetsWorker
from mergevq_platform.evaluation.options import SUITES, EvaluationOptions, Suite, completed
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.rate_distortion_report import RateDistortionReport
from mergevq_platform.evaluation.report import (
    AnyReport,
    EvaluationRecorder,
    EvaluationReport,
    KindEvaluator,
    note,
    record,
    record_beside,
    show,
    write,
)
from mergevq_platform.evaluation.worker import Device, answers
from mergevq_platform.recipe import EvaluationConfig, ResolvedRecipe
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.hub import pinned
from mergevq_platform.storage.lookup import find, places_of_runs
from mergevq_platform.storage.runs import Run
from mergevq_platform.storage.settings import read_settings
from mergevq_platform.tasks.task import task_of
from mergevq_platform.tracking.recorder import LocalRecorder, until_recorded
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.ui import closing_line

PublishedProbe = Literal["mergevq", "mae", "dinov2"]


class TrainingOutcome(Protocol):
    """The end of a training, see `trainer.Outcome`."""

    @property
    def run(self) -> Run: ...

    @property
    def step(self) -> int: ...


def evaluate(
    name: str,
    *,
    home: Path,
    keeps: Sequence[int] | None = None,
    data: str | None = None,
    recipe: str | None = None,
    suites: Sequence[Suite] = SUITES,
    extractor: FeaturesConfig | None = None,
    probes: Sequence[PublishedProbe] = (),
    seeds: int = 1,
    scales: Sequence[float] | None = None,
    images: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    tokenizer: str | None = None,
    budgets: Sequence[float] | None = None,
    allocators: Sequence[str] | None = None,
    workers: int = 1,
    out: Path | None = None,
    storage: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    track: bool = True,
    cache: bool = True,
) -> EvaluationReport:
    """Evaluate the model called `name`, write tables and figures to `out`, and record them in MLflow.

    `name` is a run (here, or known to the tracking store alone), a checkpoint, a registered model (`models:/NAME@alias`), a
    model of the Hub (`hf://owner/name`) or a tokenizer's directory, for which `recipe` then names one for data and protocol. The
    run's own MLflow run takes its first curve; evaluating again makes a linked run. `extractor` and `probes` take the place of the
    recipe's.
    A tokenizer has `suites` over `keeps`, `seeds`: see `TokenizerEvaluator`; with `budgets` (mean kept counts) its `allocators`
    (none: all that need no run) are compared, which choose among `keeps`: see `RateDistortionEvaluator`. A generator has
    `scales`, `images` for each, `steps`, `seed` and the place of its `tokenizer`, at one kept count or one budget. Raises
    `InputError` for a name that is none of these, and for kept counts, budgets, allocators, settings or data that do not fit.
    """
    store = Store.at(home, tracking_uri)
    data = data and pinned(data, "dataset")
    found = find(name, home=home, store=store, storage=storage, recipe=recipe)
    if budgets is not None and found.recipe.task.as_generator is None:
        found.require_tokenizer()
    chosen = found.recipe.evaluation
    if probes:
        chosen = replace(chosen, probes=tuple(probes))
    if extractor is not None:
        chosen = replace(chosen, extractor=extractor)
    settings = with_evaluation_files(replace(found.recipe, evaluation=chosen))
    device = _device(home, workers, address)
    options = EvaluationOptions(
        step=found.step,
        device=device,
        workers=workers if workers > 1 else 0,
        cache=Cache.at(home) if cache else None,
        data=data,
        keeps=keeps,
        suites=completed(suites),
        seeds=seeds,
        scales=scales,
        images=images,
        steps=steps,
        seed=seed,
        tokenizer=tokenizer,
        budgets=budgets,
        allocators=allocators and with_places(allocators, places_of_runs(home, lambda: store)),
        say=note,
    )
    evaluator = task_of(settings).evaluator(settings, found.checkpoint, options)
    report = evaluator.report(found.label)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    files = write(report, evaluator, out or (found.directory or Path.cwd()) / f"{report.folder}-{stamp}")
    show(report, files)
    if track and (journal := found.journal(home)):
        recorder = LocalRecorder.around(journal, store)
        with until_recorded(recorder):
            record(report, files, recorder, settings.description)
        again = found.run.name if found.run else str(journal.run_dir)
        print(closing_line(recorder, settings.experiment, sync=again))
    return report


def after_training(outcome: TrainingOutcome, recorder: EvaluationRecorder) -> None:
    """Evaluate a finished training and record it in its own MLflow run; a stand-in teacher has no evaluation.

    Of a tuned recovery the curve holds reconstruction alone, the rest being as before, at the kept counts of its training.
    """
    location = outcome.run.newest_checkpoint()
    with checkpoints.newest(location, files=checkpoints.RECIPE) as directory:
        recipe = checkpoints.recipe_of(directory)
    task = task_of(recipe)
    if not task.evaluated:
        return
    recipe = with_evaluation_files(recipe)
    workers, device, said = cluster.evaluators(recipe.cluster)
    if said:
        note(said)
    options = EvaluationOptions(
        device=device, step=outcome.step, workers=workers, cache=Cache.at(outcome.run.home), say=note
    )
    report, last = task.after_training(recipe, location, options, outcome.run.name)
    leave(report, last, outcome.run.directory / report.folder, recorder, recipe.description)
    leave_allocators(recipe, location, options, outcome.run, recorder)
    recorder.flush()


def leave_allocators(
    recipe: ResolvedRecipe,
    checkpoint: str,
    options: EvaluationOptions,
    run: Run,
    recorder: EvaluationRecorder,
    *,
    shown: bool = True,
) -> RateDistortionReport | None:
    """Compare the allocators of `evaluation.budgets` and leave their report as `leave` does; None where the recipe names no budget.

    The note and tags of the run stay those of its curve.
    """
    settings = recipe.evaluation
    if not settings.budgets:
        return None
    options = replace(options, budgets=settings.budgets, allocators=settings.allocators)
    evaluator = task_of(recipe).evaluator(recipe, checkpoint, options)
    report = evaluator.report(run.name)
    assert isinstance(report, RateDistortionReport)
    files = write(report, evaluator, run.directory / report.folder)
    if shown:
        show(report, files)
    record_beside(report, files, recorder)
    return report


def leave(
    report: AnyReport,
    evaluator: KindEvaluator[AnyReport],
    folder: Path,
    recorder: EvaluationRecorder,
    description: str,
    *,
    shown: bool = True,
) -> None:
    """Write a report and its figures to `folder`, show it, and record all of it."""
    files = write(report, evaluator, folder)
    if shown:
        show(report, files)
    record(report, files, recorder, description)


def evaluate_images(
    images: str,
    reference: str | None,
    *,
    home: Path,
    extractor: FeaturesConfig | None = None,
    size: ImageSize | None = None,
    split: str | None = None,
    seeds: int = 1,
    workers: int = 1,
    statistics: Path | None = None,
    distribution: bool = False,
    address: str | None = None,
    cache: bool = True,
) -> ImageSetsReport:
    """Evaluate images without a checkpoint: any folder, packed set or npz, against another or against statistics.

    `statistics` writes those of the images as npz, for others to be compared with; `distribution` adds KID, density and coverage.
    Raises `InputError` for
    places that hold no images, several sizes, and statistics of another extractor.
    """
    images, reference = pinned(images, "dataset"), reference and pinned(reference, "dataset")
    device = _device(home, workers, address)
    settings = EvaluationConfig(extractor=extractor) if extractor else EvaluationConfig()
    settings = with_files(settings, read_settings().weights)
    spec = ImageSetsSpec(
        images=images,
        reference=reference,
        extractor=settings.extractor,
        device=device,
        size=size,
        split=split,
    )
    passes = Passes(
        answers(ImageSetsWorker, spec, workers if workers > 1 else 0), Cache.at(home) if cache else None
    )
    evaluator = ImageSetsEvaluator(spec, passes, seeds, note, distribution)
    report = evaluator.report(images)
    if not report.values and statistics is None:
        count = report.protocol["images"]
        raise InputError(
            f"nothing can be said of {count} image{'s' * (count > 1)} of {images} without a reference: give --reference, images "
            "or statistics"
        )
    if statistics is not None:
        write_reference(statistics, evaluator.statistics())
    return report


def with_evaluation_files(recipe: ResolvedRecipe) -> ResolvedRecipe:
    """The recipe with absolute paths of the weights that its evaluation uses; others are not looked for.

    Raises `InputError`, naming the key, for one that is not there.
    """
    settings = task_of(recipe).measures(recipe.evaluation)
    if settings is None:
        return recipe
    return replace(recipe, evaluation=with_files(settings, read_settings().weights))


def _device(home: Path, workers: int, address: str | None) -> Device:
    if workers > 1:
        cluster.connect(home, address=address)
        return cluster.choose_device("auto", workers)
    return "cuda" if torch.cuda.is_available() else "cpu"
