"""Evaluating by name: a run, a checkpoint or an imported tokenizer, found, measured, written down and recorded."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import mergevq
from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq.weights import read_config
from mergevq_platform import checkpoints, cluster
from mergevq_platform.curves import Curve
from mergevq_platform.data import decode, evaluation_view
from mergevq_platform.evaluation.answering import local_answers, ray_answers
from mergevq_platform.evaluation.measuring import measure
from mergevq_platform.evaluation.recording import note, picture_grids, record, show, write
from mergevq_platform.evaluation.subject import Subject, chosen_keeps, reachable_keeps
from mergevq_platform.recipe import Recipe, read, resolve
from mergevq_platform.runs import Run
from mergevq_platform.tracking.curve import open_for_curve
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.records import JOURNAL_NAME
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.ui import where_to_look


def evaluate(
    name: str,
    *,
    home: Path,
    keeps: Sequence[int] | None = None,
    data: str | None = None,
    recipe: str | None = None,
    workers: int = 1,
    out: Path | None = None,
    storage: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    track: bool = True,
) -> Curve:
    """Measure the curve of a run or checkpoint, write tables and figures to `out`, and record it in MLflow.

    The run's own MLflow run takes its first curve; measuring again makes a linked run. A tokenizer alone (imported,
    or saved by `mergevq.save`) has no recipe: `recipe` then names one for data and protocol, whose model is replaced.
    Raises `InputError` for a name that is none of these, and for kept counts or data that do not fit.
    """
    run, location = locate(name, home=home, storage=storage)
    checkpoint, step = location, None
    if checkpoints.is_bare(location):
        settings = _around(location, recipe)
    elif recipe is not None:
        raise InputError(f"{name} has its own recipe: leave --recipe out")
    else:
        with checkpoints.newest(location) as directory:
            settings, step = checkpoints.recipe_of(directory), checkpoints.about(directory)["step"]
        checkpoint = next(
            place for place in checkpoints.listed(location) if checkpoints.directory_name(step) in place
        )
    device: Literal["cpu", "cuda"] = "cpu"
    if workers > 1:
        cluster.connect(home, address=address)
        device = cluster.choose_device("auto", workers)
    elif torch.cuda.is_available():
        device = "cuda"
    subject = Subject(checkpoint, to_tree(settings), data or settings.data.path, device)
    answers = ray_answers(subject, workers) if workers > 1 else local_answers(subject)
    label = run.name if run else Path(checkpoint).name
    curve = measure(subject, chosen_keeps(settings, keeps), answers, step=step, run=label, say=note)
    folder = out or (run.directory if run else Path.cwd()) / f"curve-{time.strftime('%Y%m%d-%H%M%S')}"
    files = write(curve, subject, folder)
    show(curve, files)
    if track and run is not None and (run.directory / JOURNAL_NAME).is_file():
        recorder = LocalRecorder.around(open_for_curve(run.directory), Store.at(home, tracking_uri))
        with contextlib.closing(recorder):
            record(curve, files, recorder)
        print(where_to_look(Store.at(home, tracking_uri), settings.experiment))
    return curve


def after_training(outcome: Any, recorder: Any) -> None:
    """Measure the curve of a finished training and record it in the training's own MLflow run."""
    location = outcome.run.newest_checkpoint()
    with checkpoints.newest(location) as directory:
        recipe = checkpoints.recipe_of(directory)
    if recipe.task.kind != "tokenizer":
        return
    device = cluster.choose_device(recipe.cluster.device, recipe.cluster.workers)
    subject = Subject(location, to_tree(recipe), recipe.data.path, device)
    answers = ray_answers(subject, recipe.cluster.workers)
    curve = measure(
        subject, chosen_keeps(recipe, None), answers, step=outcome.step, run=outcome.run.name, say=note
    )
    files = write(curve, subject, outcome.run.directory / "curve")
    show(curve, files)
    record(curve, files, recorder)
    recorder.flush()


def reconstruct(
    name: str, pictures: Sequence[Path], *, home: Path, keeps: Sequence[int] | None, out: Path
) -> list[Path]:
    """Originals, reconstructions and cluster maps of picture files, side by side; returns the files written."""
    _, location = locate(name, home=home)
    with checkpoints.weights(location) as directory:
        tokenizer = mergevq.load(directory)
        if keeps is None and not checkpoints.is_bare(location):
            keeps = chosen_keeps(checkpoints.recipe_of(directory), None)
    model = tokenizer.config
    size = model.image_size
    views = [evaluation_view(decode(path.read_bytes()), size) for path in pictures]
    originals = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return list(
        picture_grids(
            tokenizer, originals, reachable_keeps(model, keeps, range(1, model.grid_tokens + 1)), out
        ).values()
    )


def locate(name: str, *, home: Path, storage: str | None = None) -> tuple[Run | None, str]:
    """(run, location) of a run's name, a run directory, a checkpoint directory or a URI; the run if it is one of ours."""
    if checkpoints.is_bare(name):
        return None, name
    if checkpoints.listed(name):
        path = Path(name).resolve()
        run_directory = path.parent if path.name.startswith(checkpoints.PREFIX) else path
        inside = (run_directory / "recipe.yaml").is_file() and run_directory.parent == (
            home / "ray"
        ).resolve()
        return (Run(run_directory.name, home, str(run_directory.parent)) if inside else None), name
    run = Run.find(name, home=home, storage=storage)
    return run, run.location


def _around(directory: str, recipe: str | None) -> Recipe:
    """The recipe named `recipe` with the model of a tokenizer's directory in place of its own."""
    if recipe is None:
        raise InputError(
            f"{directory} is a tokenizer without a recipe: name one for data and protocol, such as --recipe gr_256_d64"
        )
    tree, config = read(recipe), read_config(directory)
    data = tree.get("data") or {}
    # Nothing of how that recipe trains is true of this tokenizer.
    task = {
        "kind": "tokenizer",
        "model": to_tree(config),
        "keep": {"kind": "list", "merge_ratios": [0.0]},
        "losses": {"alignment": {"kind": "none"}, "recovery": {"weight": 0.0}},
    }
    views = {**(data.get("views") or {}), "image_size": config.image_size}
    evaluation = {**(tree.get("evaluation") or {}), "keeps": None}
    return resolve({**tree, "task": task, "data": {**data, "views": views}, "evaluation": evaluation})
