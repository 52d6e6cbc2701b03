"""The set of procedural shapes as Parquet shards: see `mergevq_platform.procedural.shapes`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mergevq.errors import InputError
from mergevq_platform.data.images.decoding import encode_png
from mergevq_platform.data.parquet.manifest import Manifest
from mergevq_platform.data.parquet.shards import ImageRecord, write_set
from mergevq_platform.procedural.shape_distances import CLASSES
from mergevq_platform.procedural.shapes import render

CHUNK_PIXELS = 2**18


def write_shapes(
    directory: str | Path, images: int = 6000, size: int = 32, seed: int = 0, *, val_images: int = 1000
) -> Manifest:
    """Write `images` training and `val_images` validation images of `size` pixels as PNG in Parquet shards.

    A directory that already holds exactly these is left alone. Raises `InputError` for senseless numbers, or a directory
    that holds something else.
    """
    for name, value, least in (
        ("images", images, 1),
        ("validation images", val_images, 1),
        ("size", size, 8),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{name} is {value}: it must be at least {least}")
    source = {
        "kind": "shapes",
        "version": 2,
        "images": images,
        "val_images": val_images,
        "size": size,
        "seed": seed,
    }
    splits = {"train": _records("train", images, size, seed), "val": _records("val", val_images, size, seed)}
    return write_set(Path(directory), splits, CLASSES, size=size, source=source)


def _records(split: str, images: int, size: int, seed: int) -> Iterator[ImageRecord]:
    chunk = max(1, CHUNK_PIXELS // size**2)
    for start in range(0, images, chunk):
        rendered, labels = render(np.arange(start, min(start + chunk, images)), split, size, seed)
        for index, (pixels, label) in enumerate(zip(rendered, labels.tolist(), strict=True), start):
            yield ImageRecord(encode_png(pixels), f"{split}/{CLASSES[label]}/{index:07d}.png", label)
