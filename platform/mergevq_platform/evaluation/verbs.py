"""Evaluating by name: a run, a checkpoint or an imported tokenizer, found, measured, written down and recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import mergevq
from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq.metrics import FeaturesConfig, write_reference
from mergevq.serialization import read_config
from mergevq_platform.curves import Curve, tuned_curve
from mergevq_platform.data import ImageDecodeError, evaluation_view
from mergevq_platform.data.image_folder import read_image
from mergevq_platform.data.images.transparency import WHITE
from mergevq_platform.data.parquet.directory import stated_background
from mergevq_platform.data.reading import Background
from mergevq_platform.distributed import cluster, ordered_map
from mergevq_platform.evaluation.answering import ray_answers
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.evaluator import Evaluator
from mergevq_platform.evaluation.measuring import SUITES, Measurement, Suite
from mergevq_platform.evaluation.pictures import (
    PictureEvaluator,
    PictureMeasurement,
    PictureScores,
    PictureTask,
)
from mergevq_platform.evaluation.recording import note, picture_grids, record, show, write
from mergevq_platform.evaluation.subject import Subject, chosen_keeps, reachable_keeps
from mergevq_platform.evaluation.weights import with_files
from mergevq_platform.recipe import EvaluationConfig, ResolvedRecipe
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.lookup import find
from mergevq_platform.storage.settings import read_settings
from mergevq_platform.tasks.task import task_of
from mergevq_platform.tracking.listing import find_run, list_runs, stored_curve
from mergevq_platform.tracking.models import Registered, check_target, register_model
from mergevq_platform.tracking.recorder import LocalRecorder, until_recorded
from mergevq_platform.tracking.records import JOURNAL_NAME, read_identity
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.ui import closing_line


def evaluate(
    name: str,
    *,
    home: Path,
    keeps: Sequence[int] | None = None,
    data: str | None = None,
    recipe: str | None = None,
    suites: Sequence[Suite] = SUITES,
    extractor: FeaturesConfig | None = None,
    probes: Sequence[Any] = (),
    seeds: int = 1,
    workers: int = 1,
    out: Path | None = None,
    storage: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    track: bool = True,
    cache: bool = True,
) -> Curve:
    """Measure the curve of what `name` means, write tables and figures to `out`, and record it in MLflow.

    `name` is a run (here, or known to the tracking store alone), a checkpoint, a registered model (`models:/NAME@alias`)
    or a tokenizer's directory, for which `recipe` then names one for data and protocol. The run's own MLflow run takes
    its first curve; measuring again makes a linked run. `extractor` and `probes` take the place of the recipe's; `seeds`: see
    `Measurement`. Raises `InputError` for a name that is none of these, and for kept counts or data that do not fit.
    """
    store = Store.at(home, tracking_uri)
    found = find(name, home=home, store=store, storage=storage, recipe=recipe)
    settings = with_extractor(found.recipe, extractor)
    if probes:
        settings = replace(settings, evaluation=replace(settings.evaluation, probes=tuple(probes)))
    device = _device(home, workers, address)
    subject = Subject(found.checkpoint, to_tree(settings), data or settings.data.path, device)
    answers = _answers(Evaluator, subject, workers)
    measurement = Measurement(subject, answers, Cache.at(home) if cache else None, seeds)
    curve = measurement.curve(
        chosen_keeps(settings, keeps), step=found.step, run=found.label, suites=suites, say=note
    )
    folder = out or (found.directory or Path.cwd()) / f"curve-{time.strftime('%Y%m%d-%H%M%S')}"
    files = write(curve, subject, folder, measurement.findings)
    show(curve, files)
    if track and (journal := found.journal(home)):
        recorder = LocalRecorder.around(journal, store)
        with until_recorded(recorder):
            record(curve, files, recorder)
        name = found.run.name if found.run else str(journal.run_dir)
        print(closing_line(recorder, settings.experiment, sync=name))
    return curve


def after_training(outcome: Any, recorder: Any) -> None:
    """Measure a finished training and record it in its own MLflow run: a tokenizer's curve, the top-1 of what classifies.

    Of a tuned recovery the curve holds reconstruction alone, the rest being as before, at the kept counts of its training.
    """
    location = outcome.run.newest_checkpoint()
    with checkpoints.newest(location, files=checkpoints.RECIPE) as directory:
        recipe = checkpoints.recipe_of(directory)
    task_of(recipe).after_training(recipe, location, outcome, recorder)


def top1_after_training(
    outcome: Any,
    recorder: Any,
    recipe: ResolvedRecipe,
    location: str,
    evaluator: type,
    judge: Callable[[Subject, ordered_map.Answers], dict[str, float]],
) -> dict[str, float]:
    """Record and print the top-1 of what classifies; returns what `judge` found."""
    workers, device = _workers_at_hand(recipe)
    subject = Subject(location, to_tree(recipe), recipe.data.path, device)
    found = judge(subject, ordered_map.answers(evaluator, subject, workers=workers, device=device))
    recorder.metrics(outcome.step, {f"test/{name}": value for name, value in found.items()})
    if "top1" in found:
        print("top-1 {top1:.2f}% (95% interval {top1_low:.2f} to {top1_high:.2f})".format(**found))
    else:
        print(f"no top-1: no image of '{recipe.data.evaluation_split}' has a label")
    if found.get("unlabelled") and "top1" in found:
        print(
            f"{found['unlabelled']:,.0f} images of '{recipe.data.evaluation_split}' have no label: left out"
        )
    if found.get("undecodable"):
        print(f"{found['undecodable']:,.0f} images cannot be decoded: left out")
    return found


def curve_after_training(outcome: Any, recorder: Any, recipe: ResolvedRecipe, location: str) -> None:
    """Measure and record the curve of a tokenizer."""
    recipe = with_extractor(recipe)
    measurement = _measurement(outcome, recipe, location)
    curve = measurement.curve(chosen_keeps(recipe, None), step=outcome.step, run=outcome.run.name, say=note)
    _leave(curve, measurement, outcome, recorder)


def recovery_after_training(
    outcome: Any, recorder: Any, recipe: ResolvedRecipe, location: str, *, before: str
) -> None:
    """Measure and record reconstruction of a tuned recovery's tokenizer, and of the one `before`."""
    recipe = with_extractor(recipe)
    keeps = chosen_keeps(recipe, recipe.evaluation.keeps or recipe.task.kept_counts())
    curves = []
    for what, place in (("before", before), ("after", location)):
        note(f"{what} fine-tuning:")
        measurement = _measurement(outcome, recipe, place)
        curves.append(
            measurement.curve(
                keeps, step=outcome.step, run=outcome.run.name, suites=("reconstruction",), say=note
            )
        )
    _leave(tuned_curve(*curves), measurement, outcome, recorder)


def _measurement(outcome: Any, recipe: ResolvedRecipe, location: str) -> Measurement:
    workers, device = _workers_at_hand(recipe)
    subject = Subject(location, to_tree(recipe), recipe.data.path, device)
    return Measurement(subject, ray_answers(subject, workers), Cache.at(outcome.run.home))


def _workers_at_hand(recipe: ResolvedRecipe) -> tuple[int, Literal["cpu", "cuda"]]:
    workers, device, said = cluster.evaluators(recipe.cluster)
    if said:
        note(said)
    return workers, device


def _leave(curve: Curve, measurement: Measurement, outcome: Any, recorder: Any) -> None:
    files = write(curve, measurement.subject, outcome.run.directory / "curve", measurement.findings)
    show(curve, files)
    record(curve, files, recorder)
    recorder.flush()


def reconstruct(
    name: str,
    pictures: Sequence[Path],
    *,
    home: Path,
    keeps: Sequence[int] | None,
    out: Path,
    tracking_uri: str | None = None,
) -> list[Path]:
    """Originals, reconstructions and cluster maps of picture files, side by side; returns the files written.

    Transparent pixels are put on the background of the run's recipe or its set, if that is at hand, else on white. Raises
    `InputError` naming all files that cannot be read, before anything is made.
    """
    found = find(name, home=home, store=Store.at(home, tracking_uri))
    with checkpoints.weights(found.place) as directory:
        background: Background = WHITE
        if (recipe := found.stored_recipe) is not None:
            background = recipe.data.background or stated_background(recipe.data.path) or WHITE
            if keeps is None:
                keeps = chosen_keeps(recipe, None)
        views = _views(pictures, read_config(directory).image_size, background)
        tokenizer = mergevq.load(directory)
    model = tokenizer.config
    originals = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return list(
        picture_grids(
            tokenizer, originals, reachable_keeps(model, keeps, range(1, model.grid_tokens + 1)), out
        ).values()
    )


def _views(files: Sequence[Path], size: int, background: Background) -> list[np.ndarray]:
    """The evaluation views of image files. Raises `InputError` naming all that cannot be read."""
    views, bad, transparent = [], [], []
    for path in files:
        try:
            image, look = read_image(path, background)
        except ImageDecodeError as error:
            bad.append(f"{path} {error}")
            continue
        views.append(evaluation_view(image, size))
        transparent += [str(path)] if look.transparent else []
    if bad:
        raise InputError("; ".join(bad) + ": give image files")
    if transparent:
        note(f"transparent pixels become {background}: {', '.join(transparent)}")
    return views


def evaluate_pictures(
    images: str,
    reference: str | None,
    *,
    home: Path,
    extractor: FeaturesConfig | None = None,
    size: int | None = None,
    split: str | None = None,
    seeds: int = 1,
    workers: int = 1,
    statistics: Path | None = None,
    address: str | None = None,
    cache: bool = True,
) -> PictureScores:
    """Judge pictures without a checkpoint: any folder, picture set or npz, against another or against statistics.

    `statistics` writes those of the judged pictures as npz, for others to be compared with. Raises `InputError` for
    places that hold no pictures, several sizes, and statistics of another extractor.
    """
    device = _device(home, workers, address)
    settings = EvaluationConfig(extractor=extractor) if extractor else EvaluationConfig()
    settings = with_files(settings, read_settings().weights)
    task = PictureTask(
        images=images,
        reference=reference,
        extractor=to_tree(settings.extractor),
        device=device,
        size=size,
        split=split,
    )
    measurement = PictureMeasurement(
        task, _answers(PictureEvaluator, task, workers), Cache.at(home) if cache else None, seeds, note
    )
    scores = measurement.scores()
    if not scores.values and statistics is None:
        count = scores.protocol["images"]
        raise InputError(
            f"nothing can be said of {count} image{'s' * (count > 1)} of {images} without a reference: give --reference, images "
            "or statistics"
        )
    if statistics is not None:
        write_reference(statistics, measurement.statistics())
    return scores


def register(
    name: str,
    model: str,
    *,
    home: Path,
    alias: str | None = None,
    storage: str | None = None,
    tracking_uri: str | None = None,
) -> Registered:
    """Register the newest checkpoint of a run as the MLflow model `model`, under `alias`, with its curve and data.

    Raises `InputError` for a name that is no run of the store, and for a model's name or alias that cannot be.
    """
    check_target(model, alias)
    store = Store.at(home, tracking_uri)
    found = find(name, home=home, store=store, storage=storage)
    tracked = found.tracked
    if found.run is not None:
        tracked = find_run(store, read_identity(found.run.directory / JOURNAL_NAME).uid)
    if tracked is None:
        raise InputError(f"{name} has no run in {store.public_uri}: only a run's tokenizer can be registered")
    again = [run for run in list_runs(store, tracked.experiment) if run.evaluates == tracked.uid]
    measured = next((run for run in [tracked, *again] if run.has_curve), None)
    dataset = None
    if measured is not None and "protocol.data" in measured.tags:
        dataset = Path(measured.tags["protocol.data"]).name, measured.tags["protocol.data_fingerprint"][:36]
    with checkpoints.weights(found.checkpoint) as directory:
        return register_model(
            store,
            tracked,
            directory,
            name=model,
            alias=alias,
            step=found.step,
            image_size=found.recipe.tokenizer.model.image_size,
            curve=stored_curve(store, measured) if measured else {},
            dataset=dataset,
        )


def with_extractor(recipe: ResolvedRecipe, extractor: FeaturesConfig | None = None) -> ResolvedRecipe:
    """The recipe with another extractor, or its own; its weight files are found."""
    settings = recipe.evaluation if extractor is None else replace(recipe.evaluation, extractor=extractor)
    return replace(recipe, evaluation=with_files(settings, read_settings().weights))


def _device(home: Path, workers: int, address: str | None) -> Literal["cpu", "cuda"]:
    if workers > 1:
        cluster.connect(home, address=address)
        return cluster.choose_device("auto", workers)
    return "cuda" if torch.cuda.is_available() else "cpu"


def _answers(worker: type, subject: Subject | PictureTask, workers: int) -> ordered_map.Answers:
    return ordered_map.answers(worker, subject, workers=workers if workers > 1 else 0, device=subject.device)
