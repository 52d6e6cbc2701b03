"""scikit-learn's bundled handwritten digits, a small set of real images that needs no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mergevq.errors import InputError
from mergevq.rng import Stream, permutation
from mergevq_platform.data.images.decoding import encode_png
from mergevq_platform.data.parquet.manifest import Manifest
from mergevq_platform.data.parquet.shards import ImageRecord, write_set

VALIDATION_IMAGES = 297


def write_digits(directory: str | Path, size: int = 32) -> Manifest:
    """Write the 1,797 digits (8 x 8 grey, UCI test set), upsampled to `size`: 1,500 train and 297 val images.

    Raises `InputError` where scikit-learn is not installed, or for a directory that holds something else.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the digits come with scikit-learn: pip install scikit-learn") from None
    if size < 8:
        raise InputError(f"size is {size}: it must be at least 8")
    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    order = permutation(len(grey), 0, Stream.SPLIT)
    splits = {"train": order[VALIDATION_IMAGES:], "val": order[:VALIDATION_IMAGES]}
    records = {
        split: [
            ImageRecord(
                _upsampled(grey[index], size),
                f"{split}/{digits.target[index]}/{index:04d}.png",
                int(digits.target[index]),
            )
            for index in chosen.tolist()
        ]
        for split, chosen in splits.items()
    }
    names = [str(name) for name in digits.target_names]
    return write_set(
        Path(directory), records, names, size=size, source={"kind": "digits", "version": 1, "size": size}
    )


def _upsampled(grey: np.ndarray, size: int) -> bytes:
    image = Image.fromarray(grey).resize((size, size), Image.Resampling.BICUBIC)
    return encode_png(np.asarray(image.convert("RGB")))
