"""Evaluating a generator's run: the curve over guidance scales, its files, and its place in MLflow."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mergevq.config import flattened, merged, to_tree
from mergevq.metrics import FeaturesConfig
from mergevq_platform import figures
from mergevq_platform.data import evaluation_view, open_dataset
from mergevq_platform.distributed import cluster
from mergevq_platform.distributed.ordered_map import answers
from mergevq_platform.generation.judging import Judge, Measured, judge, nearest
from mergevq_platform.generation.maker import Sampler, class_names, open_sampler
from mergevq_platform.generator_report import NAMES, GeneratorReport
from mergevq_platform.recipe import Recipe, locate, parse_resolved
from mergevq_platform.storage.lookup import find
from mergevq_platform.tables import table_console
from mergevq_platform.tracking.recorder import LocalRecorder, until_recorded
from mergevq_platform.tracking.records import SCALE_PREFIX
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.ui import closing_line

SHOWN_CLASSES, SHOWN_NEIGHBOURS = 12, 4
NOTE = "cfg_curve: the charts' x axis (Step) is 100 times the guidance scale; 100 is no guidance."


def evaluate(
    name: str,
    *,
    home: Path,
    scales: Sequence[float] | None = None,
    images: int | None = None,
    keep: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    data: str | None = None,
    tokenizer: str | None = None,
    extractor: FeaturesConfig | None = None,
    workers: int = 1,
    out: Path | None = None,
    storage: str | None = None,
    address: str | None = None,
    tracking_uri: str | None = None,
    track: bool = True,
) -> GeneratorReport:
    """Judge a generator's run or checkpoint over guidance scales, write tables and figures to `out`, record it in MLflow.

    `name` is what `find` knows: a run here or of the tracking store alone, a checkpoint. The run's own MLflow run takes its
    first curve; measuring again makes a linked run. `extractor` takes the place of the recipe's. Raises `InputError` for what
    is no generator, for settings that do not fit it, and for a tokenizer that is not its own.
    """
    store = Store.at(home, tracking_uri)
    found = find(name, home=home, store=store, storage=storage)
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    if workers > 1:
        cluster.connect(home, address=address)
        device = cluster.choose_device("auto", workers)
    sampler = open_sampler(
        found.checkpoint, device=device, keep=keep, steps=steps, seed=seed, tokenizer=tokenizer
    )
    changed: dict[str, Any] = {}
    if images is not None:
        changed["task"] = {"generation": {"images": images}}
    if data is not None:
        changed["data"] = {"path": data}
    if extractor is not None:
        changed["evaluation"] = {"extractor": to_tree(extractor)}
    sampler = replace(sampler, recipe=to_tree(locate(parse_resolved(merged(sampler.recipe, changed)))))
    recipe = parse_resolved(sampler.recipe)
    report, pictures = judge(
        sampler,
        answers(Judge, sampler, workers=workers if workers > 1 else 0, device=device),
        run=found.label,
        scales=scales or recipe.generator.generation.scales,
        say=note,
    )
    folder = out or (found.directory or Path.cwd()) / f"generation-{time.strftime('%Y%m%d-%H%M%S')}"
    files = write(report, pictures, sampler, folder)
    show(report, files)
    if track and (journal := found.journal(home)):
        recorder = LocalRecorder.around(journal, store)
        with until_recorded(recorder):
            record(report, files, recorder, recipe)
        name = found.run.name if found.run else str(journal.run_dir)
        print(closing_line(recorder, recipe.experiment, sync=name))
    return report


def after_training(outcome: Any, recorder: Any, recipe: Recipe) -> None:
    """Judge a generator that has just been trained, and record it in the training's own MLflow run."""
    workers, device, said = cluster.evaluators(recipe.cluster)
    if said:
        note(said)
    sampler = open_sampler(outcome.run.newest_checkpoint(), device=device)
    report, pictures = judge(
        sampler,
        answers(Judge, sampler, workers=workers, device=device),
        run=outcome.run.name,
        scales=recipe.generator.generation.scales,
        say=note,
    )
    files = write(report, pictures, sampler, outcome.run.directory / "generation")
    show(report, files)
    record(report, files, recorder, recipe)
    recorder.flush()


def write(
    report: GeneratorReport, pictures: dict[str, Measured], sampler: Sampler, folder: Path
) -> dict[str, Path]:
    """Write JSON, Markdown and the figures; returns the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("report.json", "table.md", "guidance.png", "samples.png", "neighbours.png")
    files = {name: folder / name for name in names}
    report.save(files["report.json"])
    verdict = "\n".join(f"- {sentence}" for sentence in report.verdict())
    files["table.md"].write_text(f"{report.markdown()}\n\n{verdict}\n")
    figures.save_png(figures.guidance_figure(report), files["guidance.png"])
    recipe = parse_resolved(sampler.recipe)
    classes = class_names(recipe)
    figures.save_png(samples_figure(report, pictures, classes), files["samples.png"])
    figures.save_png(neighbours_figure(report, pictures, classes, recipe), files["neighbours.png"])
    return files


def samples_figure(report: GeneratorReport, pictures: dict[str, Measured], classes: Sequence[str]) -> Any:
    """A picture of each of the first classes, at every scale and of every reference."""
    shown = range(min(SHOWN_CLASSES, len(classes)))
    rows = {}
    for key, label in [
        ("real", "real"),
        ("reconstructed", "reconstructed"),
        *((f"{row['scale']:g}", f"guidance {row['scale']:g}") for row in report.rows),
        ("by_position", "codes by position"),
        ("untrained", "untrained"),
    ]:
        if key in pictures:
            of_class = [_first_of(pictures[key], c) for c in shown]
            blank = np.full_like(pictures[key].first[0], 255)  # so that every column stays one class
            rows[label] = [blank if picture is None else picture for picture in of_class]
    foot = f"{report.run}: {report.kept()}; the first picture of each class, not chosen; guidance 1 is no guidance."
    return figures.image_rows(rows, heads=[classes[c] for c in shown], foot=foot)


def neighbours_figure(
    report: GeneratorReport, pictures: dict[str, Measured], classes: Sequence[str], recipe: Recipe
) -> Any:
    """Generated pictures, each with the training pictures nearest to it: a copy would be seen."""
    best = report.best["scale"]
    made, train = pictures[f"{best:g}"], pictures["train"]
    count = min(SHOWN_CLASSES, len(made.first))
    distances, numbers = nearest(made.small[:count], train.small, SHOWN_NEIGHBOURS)
    dataset = open_dataset(recipe.data.path, recipe.data.train_split, recipe.data.reading)
    left_out = report.protocol.get("left_out", {}).get(recipe.data.train_split, ())
    known = np.setdiff1d(np.arange(dataset.rows), left_out)

    def training_picture(number: int) -> np.ndarray:
        (row,) = dataset.read([known[number % len(train.labels)]])
        view = evaluation_view(dataset.image(row), recipe.data.views.image_size)
        return view[:, ::-1] if number >= len(train.labels) else view

    rows, below = {}, {}
    for index in range(count):
        name = f"{classes[int(made.labels[index])]} "
        rows[name] = [made.first[index], *(training_picture(int(number)) for number in numbers[index])]
        below[name] = ["", *(f"{distance:.0f}" for distance in distances[index])]
    heads = ["generated", *("nearest" if i == 0 else f"{i + 1}." for i in range(SHOWN_NEIGHBOURS))]
    foot = (
        f"Generated at guidance {best:g}, with the nearest training pictures (or their mirror images); below them the root mean "
        "square distance in grey levels. A copied picture would stand beside its original."
    )
    return figures.image_rows(rows, heads=heads, below=below, foot=foot)


def _first_of(part: Measured, label: int) -> np.ndarray | None:
    found = np.flatnonzero(part.labels[: len(part.first)] == label)
    return part.first[found[0]] if len(found) else None


def record(report: GeneratorReport, files: dict[str, Path], recorder: Any, recipe: Recipe) -> None:
    """Record a report: `cfg_curve/<metric>` at step = 100 x scale, references as metrics, files as artifacts."""
    for row in report.rows:
        values = {f"{SCALE_PREFIX}{key}": value for key, value in row.items() if key != "scale"}
        recorder.metrics(round(100 * row["scale"]), values)
    step = report.protocol["generator"]["step"]
    for name in NAMES:
        if name in report.references:
            recorder.metrics(
                step, {f"cfg_reference/{key}_{name}": value for key, value in report.references[name].items()}
            )
    for file in files.values():
        recorder.artifact(file, "generation")
    protocol = {f"protocol.{key}": str(value) for key, value in flattened(report.protocol).items()}
    note = f"{recipe.description}\n\n{NOTE}\n\n{report.markdown()}"
    recorder.tags(protocol | {"mlflow.note.content": note})


def show(report: GeneratorReport, files: dict[str, Path]) -> None:
    """Print the table, the verdict and where the pictures are."""
    console = table_console()
    console.print(report.table())
    for sentence in report.verdict():
        console.print(f"  {sentence}", highlight=False)
    for name in ("samples.png", "neighbours.png", "guidance.png"):
        console.print(f"picture: {files[name]}", highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)
