"""Samples in one npz, as the ADM suite keeps them, as the fixed batches of an evaluation."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch

from mergevq.errors import InputError
from mergevq.image_size import parse_size
from mergevq_platform.data.loader import Batch
from mergevq_platform.data.parquet.label_values import MOST_CLASSES

SAMPLES = "arr_0 (N, H, W, 3) uint8, and class numbers arr_1 (N,) if there are some"
STATISTICS = "mu and sigma"


class NpzImages:
    """The images `arr_0` (N, H, W, 3) uint8 of an npz; labels `arr_1`, class numbers (N,), where it has them.

    Raises `InputError` for a file that holds something else, naming what it holds; `option` is how it was asked for.
    """

    background = None  # they are opaque
    said: tuple[str, ...] = ()

    def __init__(self, file: str | Path, batch: int, *, option: str = "--images") -> None:
        self.batch_size = batch
        pixels, labels = _read(file, option)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or not pixels.size:
            raise InputError(
                f"{option}: arr_0 of {file} is {pixels.dtype} {pixels.shape}: it must be uint8 (N, H, W, 3)"
            )
        if labels is not None:
            _check_labels(file, labels, len(pixels), option)
        self.pixels, self.images, self.size = pixels, len(pixels), parse_size(pixels.shape[1:3])
        self.labels = np.full(len(pixels), -1) if labels is None else labels
        self.classes: tuple[str, ...] = (
            () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
        )
        self.fingerprint = hashlib.sha256(pixels.tobytes()).hexdigest()

    @property
    def num_batches(self) -> int:
        """Number of batches."""
        return -(-self.images // self.batch_size)

    def batch(self, index: int) -> Batch:
        """Batch `index`; see `ImageSet`."""
        chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return {
            "image": torch.from_numpy(self.pixels[chosen]).permute(0, 3, 1, 2),
            "label": torch.from_numpy(self.labels[chosen].astype(np.int64)),
        }


def _read(file: str | Path, option: str) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if "arr_0" not in arrays.files:
                raise InputError(_other_names(file, option, arrays.files))
            return arrays["arr_0"], arrays["arr_1"] if "arr_1" in arrays.files else None
    except InputError:
        raise
    except ValueError as error:
        # NumPy's own text of pickled arrays says how to load them unsafely.
        reason = "it holds Python objects" if "allow_pickle" in str(error) else error
        raise InputError(f"{option}: {file} is no npz with images in arr_0 ({reason})") from None
    except (OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"{option}: {file} is no npz with images in arr_0 ({error})") from None


def _other_names(file: str | Path, option: str, names: list[str]) -> str:
    found = ", ".join(names) or "nothing"
    if {"mu", "sigma"} <= set(names):
        return f"{option}: {file} holds statistics ({found}), which go with --reference; images are {SAMPLES}"
    also = f", or statistics in {STATISTICS}" if option == "--reference" else ""
    return f"{option}: {file} holds {found}: rename its arrays, images are {SAMPLES}{also}"


def _check_labels(file: str | Path, labels: np.ndarray, images: int, option: str) -> None:
    found = f"{labels.dtype} {labels.shape}"
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        raise InputError(
            f"{option}: arr_1 of {file} is {found}: it must be class numbers ({images},), whole and from 0"
        )
    for worst in (labels.min(), labels.max()):
        if not 0 <= worst < MOST_CLASSES:
            raise InputError(
                f"{option}: arr_1 of {file} holds {worst}: it must be class numbers ({images},), whole, from 0 and below "
                f"{MOST_CLASSES:,}"
            )
