"""The set of procedural shapes as Parquet shards: see `mergevq_platform.procedural.shapes`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mergevq.errors import InputError
from mergevq_platform.data.images.decoding import encode_png
from mergevq_platform.data.parquet.manifest import Manifest
from mergevq_platform.data.parquet.shards import ImageRecord, write_set
from mergevq_platform.procedural.shape_distances import CLASSES
from mergevq_platform.procedural.shapes import numbers_of, render

CHUNK_PIXELS = 2**18


def write_shapes(
    directory: str | Path,
    images: int = 6000,
    size: int = 32,
    seed: int = 0,
    *,
    val_images: int = 1000,
    classes: Sequence[str] = CLASSES,
) -> Manifest:
    """Write `images` training and `val_images` validation images of `size` pixels as PNG in Parquet shards.

    `classes` are the shapes that are shown, and number them: a set of some holds the first images of each split that show one
    of these. A directory that already holds exactly these images is left alone. Raises `InputError` for senseless numbers or
    classes, or a directory that holds something else.
    """
    for name, value, least in (
        ("images", images, 1),
        ("validation images", val_images, 1),
        ("size", size, 8),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{name} is {value}: it must be at least {least}")
    _check_classes(classes)
    source: dict[str, object] = {
        "kind": "shapes",
        "version": 2,
        "images": images,
        "val_images": val_images,
        "size": size,
        "seed": seed,
    }
    if tuple(classes) != CLASSES:
        source["classes"] = list(classes)
    counts = {"train": images, "val": val_images}
    splits = {split: _records(split, count, size, seed, classes) for split, count in counts.items()}
    return write_set(Path(directory), splits, classes, size=size, source=source)


def _check_classes(classes: Sequence[str]) -> None:
    if unknown := [name for name in classes if name not in CLASSES]:
        raise InputError(f"classes: there is no shape '{unknown[0]}': {', '.join(CLASSES)}")
    if not classes or len(set(classes)) < len(classes):
        raise InputError(f"classes is {' '.join(classes) or 'empty'}: name one shape or more, each once")


def _records(split: str, images: int, size: int, seed: int, classes: Sequence[str]) -> Iterator[ImageRecord]:
    numbers = numbers_of([CLASSES.index(name) for name in classes], images, split, seed)
    chunk = max(1, CHUNK_PIXELS // size**2)
    for start in range(0, images, chunk):
        part = numbers[start : start + chunk]
        rendered, labels = render(part, split, size, seed)
        for index, pixels, label in zip(part.tolist(), rendered, labels.tolist(), strict=True):
            name = CLASSES[label]
            yield ImageRecord(encode_png(pixels), f"{split}/{name}/{index:07d}.png", classes.index(name))
