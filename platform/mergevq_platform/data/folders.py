"""Pictures that lie around: a folder of files, or an npz of samples, as the fixed batches of an evaluation."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from mergevq.errors import InputError
from mergevq_platform.data.eval_batches import DECODING_THREADS, EvalBatches
from mergevq_platform.data.opening import open_dataset, split_names
from mergevq_platform.data.pictures import BadPicture, decode
from mergevq_platform.data.stream import Batch
from mergevq_platform.data.views import evaluation_view

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Pictures(Protocol):
    """A set of pictures of one size in fixed batches."""

    images: int
    size: int
    fingerprint: str
    classes: tuple[str, ...]  # none: without labels

    @property
    def num_batches(self) -> int:
        """Number of batches."""

    def batch(self, index: int) -> Batch:
        """Batch `index`: `image` uint8 (b, 3, S, S) and `label` int64 (b,), -1 without labels."""


class FolderPictures:
    """Picture files below a folder, in order of their paths; classes are the folders directly below it, where every
    file lies in one.

    Without `size` they must all be squares of one size; with it the shorter side is brought to it and the middle kept.
    Raises `InputError` naming the file, for a folder without pictures, pictures of several sizes, and broken ones.
    """

    def __init__(self, folder: str | Path, batch: int, *, size: int | None = None) -> None:
        self.folder, self.batch_size = Path(folder), batch
        self.files = sorted(
            path
            for path in self.folder.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and not any(p.startswith(".") for p in path.relative_to(folder).parts)
        )
        if not self.files:
            raise InputError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}): name the folder that does")
        self.images = len(self.files)
        self.size = size or self._one_size()
        inside = [path.relative_to(self.folder).parts for path in self.files]
        labelled = all(len(parts) > 1 for parts in inside)
        self.classes = tuple(sorted({parts[0] for parts in inside})) if labelled else ()
        self.labels = [self.classes.index(parts[0]) if labelled else -1 for parts in inside]
        status = [path.stat() for path in self.files]
        listing = [(*parts, s.st_size, s.st_mtime_ns) for parts, s in zip(inside, status, strict=True)]
        self.fingerprint = hashlib.sha256(repr(listing).encode()).hexdigest()

    @property
    def num_batches(self) -> int:
        """Number of batches."""
        return -(-self.images // self.batch_size)

    def batch(self, index: int) -> Batch:
        """Batch `index`; see `Pictures`."""
        chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            pictures = list(pool.map(self._view, self.files[chosen]))
        return {
            "image": torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2),
            "label": torch.tensor(self.labels[chosen], dtype=torch.int64),
        }

    def _view(self, path: Path) -> np.ndarray:
        try:
            return evaluation_view(decode(path.read_bytes()), self.size)
        except BadPicture as error:
            raise InputError(
                f"{path} {error}: a metric needs every picture; mend it or take it away"
            ) from None

    def _one_size(self) -> int:
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            sizes = list(pool.map(_shape, self.files))
        for path, shape in zip(self.files, sizes, strict=True):
            if shape != sizes[0] or shape[0] != shape[1]:
                raise InputError(
                    f"{path} has {shape[0]} x {shape[1]} pixels, {self.files[0].name} {sizes[0][0]} x {sizes[0][1]}: "
                    "pictures must be squares of one size; --size S makes them so"
                )
        return sizes[0][0]


class ArrayPictures:
    """The pictures `arr_0` (N, S, S, 3) uint8 of an npz, as the ADM suite keeps samples; labels `arr_1` where it has them."""

    def __init__(self, file: str | Path, batch: int) -> None:
        self.batch_size = batch
        try:
            with np.load(file, allow_pickle=False) as arrays:
                pictures = arrays["arr_0"]
                labels = arrays["arr_1"] if "arr_1" in arrays.files else None
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{file} is no npz with pictures in arr_0 ({error})") from None
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or not len(pictures):
            raise InputError(
                f"arr_0 of {file} is {pictures.dtype} {pictures.shape}: it must be uint8 (N, S, S, 3)"
            )
        if pictures.shape[1] != pictures.shape[2]:
            raise InputError(
                f"the pictures of {file} are {pictures.shape[1]} x {pictures.shape[2]}: they must be squares"
            )
        self.pictures, self.images, self.size = pictures, len(pictures), pictures.shape[1]
        self.labels = np.full(len(pictures), -1) if labels is None else labels
        self.classes = () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
        self.fingerprint = hashlib.sha256(pictures.tobytes()).hexdigest()

    @property
    def num_batches(self) -> int:
        """Number of batches."""
        return -(-self.images // self.batch_size)

    def batch(self, index: int) -> Batch:
        """Batch `index`; see `Pictures`."""
        chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return {
            "image": torch.from_numpy(self.pictures[chosen]).permute(0, 3, 1, 2),
            "label": torch.from_numpy(self.labels[chosen].astype(np.int64)),
        }


class PackedPictures(EvalBatches):
    """A split of a picture set in Parquet as `Pictures`."""

    @property
    def fingerprint(self) -> str:
        """Of the split."""
        return self.dataset.fingerprint

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.dataset.classes if self.dataset.labelled else ()


def open_pictures(
    place: str, batch: int, *, size: int | None = None, split: str | None = None
) -> FolderPictures | ArrayPictures | PackedPictures:
    """The pictures at `place`: a folder of files, a picture set in Parquet (of which `split`), or an npz of samples.

    Raises `InputError` for a place that holds none, and where size or split must be said.
    """
    path = Path(place)
    if path.suffix == ".npz":
        return ArrayPictures(path, batch)
    if "://" not in place and path.is_dir() and not any(path.rglob("*.parquet")):
        return FolderPictures(path, batch, size=size)
    names = split_names(place)
    if split is None and len(names) > 1:
        raise InputError(f"{place} has the splits {', '.join(names)}: say which with --split")
    dataset = open_dataset(place, split or names[0])
    if size is None and dataset.size is None:
        raise InputError(f"{place} does not say how large its pictures are: give --size S")
    return PackedPictures(dataset, size or dataset.size or 0, batch)


def _shape(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}): mend it or take it away") from None
