"""Finding the images that are to be packed: each as a place where its bytes are, with split and class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mergevq.errors import InputError
from mergevq_platform.data.hub import local_folder
from mergevq_platform.data.images.endings import ending
from mergevq_platform.data.sources.archive_images import in_archives
from mergevq_platform.data.sources.choices import Choices, SourceImage, SourceImages
from mergevq_platform.data.sources.image_source import ImageSource, Item
from mergevq_platform.data.sources.layouts import contents_of, layout_of
from mergevq_platform.data.sources.listing import readable
from mergevq_platform.data.sources.numbering import LabelledImages, number_classes
from mergevq_platform.data.sources.parquet_rows import parquet_source
from mergevq_platform.data.sources.summary import SourceSummary, SplitCount, counted, reason_of

LABELS_ENDINGS = {".csv", ".tsv", ".txt"}
NO_LABELS = re.compile(r"readme|licen[cs]e|notice|requirements", re.IGNORECASE)
FEW = 10  # files of one ending, of which one may hold the labels


def find_source(source: str | Path, choices: Choices, *, scratch: Path) -> ImageSource:
    """The source at `source`: image files in folders, archives of them, or a tree of Parquet files.

    How it is laid out is decided once, for all of it; `choices` decide where two readings are possible. Compressed archives
    are copied as tars to `scratch`. Raises `InputError` where there are no images, where two readings are possible, for
    images with and without a class in one split, and for a class that only a later split has.
    """
    root = (
        Path(local_folder(source)).expanduser().absolute()
    )  # tasks on other nodes have other working directories
    if not root.exists():
        raise InputError(
            f"no source at {source}: name a folder of images, an archive, or a folder of archives or Parquet files"
        )
    contents = contents_of(root, choices.labels)
    if root.is_file() and not contents.archives:
        raise InputError(f"{source} is neither a folder nor an archive: name one of these")
    layout = layout_of(str(source), contents, choices)
    if layout == "parquet":
        return parquet_source(root, contents, choices)
    _refuse_column(layout, choices)
    if layout == "archives":
        archives = [(root / name if root.is_dir() else root, name) for name in contents.archives]
        collected = in_archives(archives, choices, scratch)
    else:
        collected = _in_folders(root, contents.images)
    for item in contents.left_out.unused():
        collected.left_out.add(item.reason, item.example, item.count)
    if not collected.images:
        raise InputError(
            f"{source} holds no images in its {counted(len(contents.archives), 'archive')} ({next(iter(contents.archives))}): "
            "name a source that does"
        )
    decided = number_classes(str(root), collected, choices)
    if layout == "folders" and not decided.by_folder:
        collected.layout = (
            "image files with a labels file" if choices.labels else "image files without class folders"
        )
    if not decided.classes and choices.labels is None:
        tables = [name for name in contents.others if ending(name) in {".csv", ".tsv"}]
        if tables:
            likely = min(tables, key=lambda name: "train" not in name.lower())
            collected.notes.append(("labels", f"none; --labels reads a CSV, {likely} perhaps"))
    found = _source(decided, collected)
    if choices.labels is None and found.understood is not None:
        understood = replace(found.understood, perhaps_labels=_perhaps_labels(contents.others))
        found = replace(found, understood=understood)
    return found


def _perhaps_labels(others: Sequence[str]) -> frozenset[str]:
    """The reasons, in a summary, of files that lie beside the images and may be labels files: a few, not one an image."""
    counts = Counter(
        readable(reason_of(name))
        for name in others
        if ending(name) in LABELS_ENDINGS and not NO_LABELS.match(name.rpartition("/")[2])
    )
    return frozenset(reason for reason, count in counts.items() if count <= FEW)


def _in_folders(root: Path, images: Sequence[str]) -> SourceImages:
    found = []
    for file in images:
        name = readable(file)
        found.append(
            SourceImage(tuple(name.split("/")[:-1]), name, name, str(root / file), -1, _size(root / file))
        )
    return SourceImages("class folders", found)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a link to nowhere: reading it will fail too, and then it is listed with the reason
        return -1


def _source(decided: LabelledImages, collected: SourceImages) -> ImageSource:
    splits = {
        split: [
            Item(found.name, label, found.file, found.offset, found.size)
            for found, label in zip(entries, decided.labels[split], strict=True)
        ]
        for split, entries in decided.splits.items()
    }
    return ImageSource(
        kind=collected.kind,
        splits=splits,
        classes=decided.classes,
        refused=collected.refused,
        ignored=collected.left_out.files,
        understood=_understood(splits, decided.classes, collected, decided.notes),
    )


def _understood(
    splits: dict[str, list[Item]],
    classes: tuple[str, ...],
    collected: SourceImages,
    notes: Sequence[tuple[str, str]],
) -> SourceSummary:
    labels = {split: [item.label for item in items] for split, items in splits.items()}
    order = sorted(labels, key=lambda split: split != "train")
    first = next((labels[split] for split in order if any(label >= 0 for label in labels[split])), [])
    images = [0] * len(classes)
    for label in first:
        if label >= 0:
            images[label] += 1
    return SourceSummary(
        layout=collected.layout,
        splits={split: SplitCount(len(each), each.count(-1)) for split, each in labels.items()},
        classes=classes,
        class_images=tuple(images),
        notes=(*collected.notes, *notes),
        unused=collected.left_out.unused(),
    )


def _refuse_column(layout: str, choices: Choices) -> None:
    reading = choices.reading
    if reading.image_column is not None:
        raise InputError(
            f"--image-column {reading.image_column}: only Parquet files have columns: leave it out"
        )
    if reading.label_column is not None and layout == "folders" and choices.labels is None:
        raise InputError(
            f"--label-column {reading.label_column}: image files have no columns: give --labels CSV, or leave it out"
        )
