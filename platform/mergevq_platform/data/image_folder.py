"""Image files in a folder as the fixed batches of an evaluation."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from mergevq.errors import InputError
from mergevq.image_size import ImageSize, height_width, parse_size
from mergevq_platform.data.eval_batches import DECODING_THREADS
from mergevq_platform.data.images.decoding import FIGURE, Decoded, ImageDecodeError, decoded
from mergevq_platform.data.images.endings import FORMATS, ending, is_image
from mergevq_platform.data.images.transparency import WHITE
from mergevq_platform.data.loader import Batch
from mergevq_platform.data.reading import Background
from mergevq_platform.data.sources.listing import listed, readable
from mergevq_platform.data.views import evaluation_view

SHEET = "contact_sheet.png"  # what `mergevq generate` leaves beside its images; older ones bear no mark
NAMES_SHOWN = 3


class Files(NamedTuple):
    """The files below a folder, by their relative names in order of their paths."""

    images: list[str]
    shapes: list[tuple[int, int]]  # width and height of each image
    figures: list[str]  # drawn by us: contact sheets, grids, curves
    others: list[str]


class ImageFolder:
    """Image files below a folder, in order of their paths; classes are the folders directly below it, where every
    file lies in one. Transparent pixels are put on white.

    Without `size` they must all have one size; with it they are resized to cover it and the middle is kept.
    Figures and sheets of our own are none of them. Links are followed. `said` tells what was left out. Raises `InputError`
    naming the file, for a folder without images, images of several sizes, and broken ones.
    """

    background: Background = WHITE

    def __init__(
        self,
        folder: str | Path,
        batch: int,
        *,
        size: ImageSize | None = None,
        files: Files | None = None,
    ) -> None:
        self.folder, self.batch_size = Path(folder), batch
        found = files or files_of(folder)
        if not found.images:
            holds = (
                f"; it holds {_listed(found.figures + found.others)}" if found.figures + found.others else ""
            )
            raise InputError(f"{folder} holds no images{holds}: name the folder that does")
        self.files = [self.folder / name for name in found.images]
        self.images = len(self.files)
        self.size = size or _one_size(self.files, found.shapes)
        self.said = tuple(_said(folder, found, height_width(self.size)))
        inside = [tuple(name.split("/")) for name in found.images]
        labelled = all(len(parts) > 1 for parts in inside)
        self.classes: tuple[str, ...] = tuple(sorted({parts[0] for parts in inside})) if labelled else ()
        self.labels = [self.classes.index(parts[0]) if labelled else -1 for parts in inside]
        status = [path.stat() for path in self.files]
        listing = [(*parts, s.st_size, s.st_mtime_ns) for parts, s in zip(inside, status, strict=True)]
        self.fingerprint = hashlib.sha256(repr(listing).encode()).hexdigest()

    @property
    def num_batches(self) -> int:
        """Number of batches."""
        return -(-self.images // self.batch_size)

    def batch(self, index: int) -> Batch:
        """Batch `index`; see `ImageSet`."""
        chosen = slice(index * self.batch_size, (index + 1) * self.batch_size)
        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            images = list(pool.map(self._view, self.files[chosen]))
        return {
            "image": torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2),
            "label": torch.tensor(self.labels[chosen], dtype=torch.int64),
        }

    def _view(self, path: Path) -> np.ndarray:
        try:
            return evaluation_view(read_image(path, self.background).image, self.size)
        except ImageDecodeError as error:
            raise InputError(f"{path} {error}: a metric needs every image; mend it or take it away") from None


def read_image(path: Path, background: Background = WHITE) -> Decoded:
    """The image of a file. Raises `ImageDecodeError` with the reason, for a file that cannot be read as well."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageDecodeError(f"cannot be read ({(error.strerror or str(error)).lower()})") from None
    return decoded(data, background=background)


def files_of(folder: str | Path) -> Files:
    """The images below a folder. Raises `InputError` naming the first image whose beginning cannot be read."""
    root = Path(folder)
    names = sorted(listed(root).files, key=lambda name: name.split("/"))
    found = Files([], [], [], [])
    with ThreadPoolExecutor(DECODING_THREADS) as pool:
        for name, header in zip(names, pool.map(_header, (root / name for name in names)), strict=True):
            if header is None:
                found.others.append(name)
            elif header.ours or name.split("/")[-1] == SHEET:
                found.figures.append(name)
            else:
                found.images.append(name)
                found.shapes.append(header.shape)
    return found


class _Header(NamedTuple):
    shape: tuple[int, int]
    ours: bool


def _header(path: Path) -> _Header | None:
    if not is_image(path):
        return None
    try:
        with Image.open(path, formats=FORMATS) as image:
            return _Header(image.size, image.info.get("Software") == FIGURE)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as an image ({error}): mend it or take it away") from None


def _one_size(files: Sequence[Path], shapes: Sequence[tuple[int, int]]) -> ImageSize:
    for path, (width, height) in zip(files, shapes, strict=True):
        if (width, height) != shapes[0]:
            raise InputError(
                f"{path} has {width} x {height} pixels, {files[0].name} {shapes[0][0]} x {shapes[0][1]}: "
                "images must have one size; --size S (or HEIGHTxWIDTH) takes the middle of each"
            )
    return parse_size(shapes[0][::-1])


def _said(folder: str | Path, found: Files, size: tuple[int, int]) -> list[str]:
    lines = []
    if found.figures:
        lines.append(f"{folder}: left out {_listed(found.figures)}, figures made by mergevq")
    if found.others:
        lines.append(f"{folder}: left out {_listed(found.others)}, which are no images")
    if cut := sum(width * size[0] != height * size[1] for width, height in found.shapes):
        shape = "no squares" if size[0] == size[1] else f"not of the shape {size[0]} x {size[1]}"
        lines.append(f"{folder}: {cut:,} of {len(found.shapes):,} images are {shape}: their middle is judged")
    return lines


def _listed(names: Sequence[str]) -> str:
    endings = Counter(ending(name) or "no ending" for name in names)
    kinds = ", ".join(f"{count} {kind}" for kind, count in endings.most_common()) if len(names) > 1 else ""
    shown = ", ".join(map(readable, names[:NAMES_SHOWN])) + (", …" if len(names) > NAMES_SHOWN else "")
    return f"{len(names):,} files ({kinds}: {shown})" if kinds else shown
