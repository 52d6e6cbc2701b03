"""The figures of a generator's evaluation: metrics over guidance scales, samples, samples beside their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mergevq_platform import figures
from mergevq_platform.data import evaluation_view, open_dataset
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.evaluation.generator_results import GeneratorFindings, ShownImages
from mergevq_platform.recipe import Recipe
from mergevq_platform.sampling.pipeline import class_names
from mergevq_platform.tracking.page_images import save_page_image

SHOWN_CLASSES, SHOWN_NEIGHBOURS = 12, 4


def write_figures(
    report: GeneratorReport, recipe: Recipe, findings: GeneratorFindings, folder: Path
) -> dict[str, Path]:
    """guidance.png, samples.png and neighbours.png in `folder` by name, and the samples of every scale for MLflow's page."""
    classes = class_names(recipe)
    drawn = {
        "guidance.png": figures.guidance_figure(report),
        "samples.png": samples_figure(report, findings, classes),
        "neighbours.png": neighbours_figure(report, findings, classes, recipe),
    }
    files = {name: folder / name for name in drawn}
    for name, figure in drawn.items():
        figures.save_png(figure, files[name])
    for row in report.rows:
        shown = findings.shown[f"{row['scale']:g}"]
        of_class = [_first_of(shown, label) for label in range(min(SHOWN_CLASSES, len(classes)))]
        tiles = [figures.tile(image) for image in of_class if image is not None]
        if tiles:
            files |= save_page_image(folder, "samples", round(100 * row["scale"]), figures.tiled(tiles))
    return files


def samples_figure(report: GeneratorReport, findings: GeneratorFindings, classes: Sequence[str]) -> Figure:
    """An image of each of the first classes, at every scale and of every reference."""
    shown = range(min(SHOWN_CLASSES, len(classes)))
    rows = {}
    for key, label in [
        ("real", "real"),
        ("reconstructed", "reconstructed"),
        *((f"{row['scale']:g}", f"guidance {row['scale']:g}") for row in report.rows),
        ("by_position", "codes by position"),
        ("untrained", "untrained"),
    ]:
        if key in findings.shown:
            of_class = [_first_of(findings.shown[key], c) for c in shown]
            blank = np.full_like(findings.shown[key].images[0], 255)  # so that every column stays one class
            rows[label] = [blank if image is None else image for image in of_class]
    foot = f"{report.run}: {report.kept()}; the first image of each class, not chosen; guidance 1 is no guidance."
    return figures.image_rows(rows, heads=[classes[c] for c in shown], foot=foot)


def neighbours_figure(
    report: GeneratorReport, findings: GeneratorFindings, classes: Sequence[str], recipe: Recipe
) -> Figure:
    """Generated images, each with the training images nearest to it: a copy would be seen."""
    assert findings.neighbours is not None
    best = report.best["scale"]
    generated, train_images = findings.shown[f"{best:g}"], findings.train_images
    distances, numbers = findings.neighbours
    dataset = open_dataset(recipe.data.path, recipe.data.train_split, recipe.data.reading)
    left_out = report.protocol.get("left_out", {}).get(recipe.data.train_split, ())
    known = np.setdiff1d(np.arange(dataset.rows), left_out)

    def training_image(number: int) -> np.ndarray:
        (row,) = dataset.read([known[number % train_images]])
        view = evaluation_view(dataset.image(row), recipe.data.views.image_size)
        return view[:, ::-1] if number >= train_images else view

    rows, below = {}, {}
    for index in range(len(numbers)):
        name = f"{classes[int(generated.labels[index])]} "
        rows[name] = [generated.images[index], *(training_image(int(number)) for number in numbers[index])]
        below[name] = ["", *(f"{distance:.0f}" for distance in distances[index])]
    heads = ["generated", *("nearest" if i == 0 else f"{i + 1}." for i in range(SHOWN_NEIGHBOURS))]
    foot = (
        f"Generated at guidance {best:g}, with the nearest training images (or their mirror images); below them the root mean "
        "square distance in grey levels. A copied image would stand beside its original."
    )
    return figures.image_rows(rows, heads=heads, below=below, foot=foot)


def _first_of(shown: ShownImages, label: int) -> np.ndarray | None:
    found = np.flatnonzero(shown.labels == label)
    return shown.images[found[0]] if len(found) else None
