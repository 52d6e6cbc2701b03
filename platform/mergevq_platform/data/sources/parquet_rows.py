"""A tree of Parquet files as a source to be packed: the rows of each split, by number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mergevq.errors import InputError
from mergevq_platform.data.dataset import Dataset
from mergevq_platform.data.parquet.directory import open_dataset, split_names
from mergevq_platform.data.parquet.notes import noted
from mergevq_platform.data.reading import Reading
from mergevq_platform.data.sources.choices import Choices
from mergevq_platform.data.sources.image_source import ImageSource, Item
from mergevq_platform.data.sources.layouts import Contents, is_packed
from mergevq_platform.data.sources.summary import SourceSummary, SplitCount


def parquet_source(root: Path, contents: Contents, choices: Choices) -> ImageSource:
    """The rows of every split at `root`, with notes on them. Raises `InputError` as `open_dataset` does, and for choices
    that are for image files."""
    for option, value, instead in (
        ("--labels", choices.labels, "--label-column names the column of labels"),
        ("--splits", choices.splits, "a split is told by the names of its files"),
        ("--class-depth", choices.class_depth, "--label-column names the column of labels"),
    ):
        if value is not None:
            raise InputError(
                f"{option} is for image files, {root} holds Parquet files: leave it out; {instead}"
            )
    found = _rows(root, choices.reading)
    datasets = {split: open_dataset(root, split, choices.reading) for split in found.splits}
    understood = SourceSummary(
        layout="a packed set" if is_packed(root) else "Parquet files",
        splits={split: SplitCount(dataset.rows, dataset.unlabelled) for split, dataset in datasets.items()},
        class_images=_class_images(found.classes, datasets.values()),
        classes=found.classes if any(dataset.labelled for dataset in datasets.values()) else (),
        notes=tuple(("parquet", line) for line in noted(dataset.notes for dataset in datasets.values())),
        unused=contents.left_out.unused(),
    )
    return replace(found, ignored=contents.left_out.files, understood=understood)


def _rows(root: Path, reading: Reading) -> ImageSource:
    """The rows of every split at `root`. Raises `InputError` as `open_dataset` does."""
    splits: dict[str, list[Item]] = {}
    blocks: dict[str, list[int]] = {}
    classes: tuple[str, ...] = ()
    identity = ""
    for split in split_names(root):
        dataset = open_dataset(root, split, reading)
        identity += dataset.fingerprint
        classes = max(classes, dataset.classes, key=len)  # of one numbering: `open_dataset` sees to that
        splits[split] = [Item(f"{split}/{row:09d}", -1, str(root), row) for row in range(dataset.rows)]
        blocks[split] = dataset.row_group_sizes.tolist()
    return ImageSource(kind="parquet", splits=splits, classes=classes, blocks=blocks, identity=identity)


def _class_images(classes: Sequence[str], datasets: Iterable[Dataset]) -> tuple[int, ...]:
    """Images of each class in train or, where it has no labels, in the first split that has some."""
    shown = first_labelled(datasets)
    counts = shown.class_images() if shown is not None else ()
    return (*counts, *[0] * (len(classes) - len(counts))) if counts else ()


def first_labelled(datasets: Iterable[Dataset]) -> Dataset | None:
    """The split that tells most of the classes: train or, where it has no labels, the first that has some."""
    ordered = sorted(datasets, key=lambda dataset: dataset.split != "train")
    return next((dataset for dataset in ordered if dataset.labelled), None)
