"""Image sets of any kind as the fixed batches of an evaluation: a folder of files, an npz of samples, a packed set."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from mergevq.errors import InputError
from mergevq.image_size import ImageSize, parse_size
from mergevq_platform.data.eval_batches import EvalBatches
from mergevq_platform.data.hub import local_folder
from mergevq_platform.data.image_folder import ImageFolder, files_of
from mergevq_platform.data.images.endings import ending
from mergevq_platform.data.loader import Batch
from mergevq_platform.data.npz_images import SAMPLES, STATISTICS, NpzImages
from mergevq_platform.data.parquet.directory import open_dataset, read_manifest, split_names
from mergevq_platform.data.reading import Background


class ImageSet(Protocol):
    """A set of images of one size in fixed batches."""

    images: int
    size: ImageSize

    @property
    def background(self) -> Background | None:
        """The background of transparent pixels; None where there are none, or alpha is dropped as before there was one."""

    @property
    def said(self) -> tuple[str, ...]:
        """The files that were left out, line by line."""

    @property
    def fingerprint(self) -> str:
        """The identity of the set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; none without labels."""

    @property
    def num_batches(self) -> int:
        """Number of batches."""

    def batch(self, index: int) -> Batch:
        """Batch `index`: `image` uint8 (b, 3, H, W) and `label` int64 (b,), -1 without labels."""


class PackedImages(EvalBatches):
    """A split of an image set in Parquet as `ImageSet`."""

    said: tuple[str, ...] = ()

    @property
    def background(self) -> Background | None:
        """The set's."""
        return self.dataset.background

    @property
    def fingerprint(self) -> str:
        """The identity of the split."""
        return self.dataset.fingerprint

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.dataset.classes if self.dataset.labelled else ()


def open_images(
    place: str,
    batch: int,
    *,
    size: ImageSize | None = None,
    split: str | None = None,
    option: str = "--images",
) -> ImageFolder | NpzImages | PackedImages:
    """The images at `place`: a folder of files, an image set in Parquet (of which `split`), or an npz of samples.

    Raises `InputError` for a place that holds none, and where size or split must be said; `option` is how it was asked for.
    """
    size = None if size is None else parse_size(size)
    local = str(local_folder(place))
    path = Path(local)
    if "://" not in local:
        _check_exists(local, option)
        if path.is_file():
            return NpzImages(path, batch, option=option)
        if read_manifest(place) is None:
            files = files_of(path)
            parquet = [name for name in files.others if ending(name) == ".parquet"]
            if files.images and parquet and _is_set(place):
                raise InputError(
                    f"{option}: {place} holds both image files ({files.images[0]}, …) and Parquet files with images "
                    f"({parquet[0]}, …): name a folder that holds one of them"
                )
            if files.images or not parquet:
                return ImageFolder(path, batch, size=size, files=files)
    names = split_names(place)
    if split is None and len(names) > 1:
        raise InputError(f"{place} has the splits {', '.join(names)}: say which with --split")
    dataset = open_dataset(place, split or names[0])
    if size is None and dataset.size is None:
        raise InputError(f"{place} does not say how large its images are: give --size S")
    wanted = size or dataset.size
    assert wanted is not None
    return PackedImages(dataset, wanted, batch)


def _check_exists(place: str, option: str) -> None:
    path = Path(place)
    statistics = f", or statistics ({STATISTICS})" if option == "--reference" else ""
    kinds = f"a folder of images, a packed set, or an npz with {SAMPLES}{statistics}"
    if not path.exists():
        raise InputError(f"{option}: there is nothing at {place}: name {kinds}")
    if path.is_file() and path.suffix.lower() != ".npz":
        raise InputError(f"{option}: {place} is a {path.suffix or 'plain'} file: name {kinds}")


def _is_set(place: str) -> bool:
    """Whether Parquet files at `place` hold images; others are tables that lie beside image files."""
    try:
        return any(open_dataset(place, split).rows for split in split_names(place))
    except InputError:
        return False
