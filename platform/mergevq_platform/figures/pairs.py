"""Images for a slider, one for each kept count or guidance scale: small, without letters, the same layout at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from mergevq_platform.figures.grids import cluster_maps, on_screen

TILE = 128  # screen pixels of a tile's longer side, at most
GAP = 2  # screen pixels between the two of a pair
SPACE = 8  # and between pairs


def reconstruction_pairs(originals: Tensor, reconstructed: Mapping[int, Tensor]) -> dict[int, np.ndarray]:
    """Each image beside its reconstruction: kept tokens -> (h, w, 3) uint8. Images (B, 3, H, W) in [-1, 1]."""
    screen = on_screen(originals)
    return {keep: paired(screen, on_screen(images)) for keep, images in reconstructed.items()}


def cluster_pairs(originals: Tensor, assigned: Mapping[int, Tensor]) -> dict[int, np.ndarray]:
    """Each image beside its clusters of merged cells, as in `cluster_grid`: kept tokens -> (h, w, 3) uint8."""
    screen = on_screen(originals)
    return {
        keep: paired(screen, cluster_maps(screen, assignment, originals.shape[-2:], keep))
        for keep, assignment in assigned.items()
    }


def paired(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pairs of images (B, H, W, 3) uint8 in rows, about as wide as high."""
    pairs = []
    for pair in zip(left, right, strict=True):
        a, b = map(tile, pair)
        pairs.append(np.concatenate([a, np.full((len(a), GAP, 3), 255, np.uint8), b], axis=1))
    return tiled(pairs)


def tiled(images: Sequence[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3) uint8 of one shape in rows on white, about as wide as high."""
    height, width = images[0].shape[:2]
    columns = max(1, round(math.sqrt(len(images) * height / width)))
    rows = math.ceil(len(images) / columns)
    canvas = np.full((rows * (height + SPACE) - SPACE, columns * (width + SPACE) - SPACE, 3), 255, np.uint8)
    for number, image in enumerate(images):
        y, x = (number // columns) * (height + SPACE), (number % columns) * (width + SPACE)
        canvas[y : y + height, x : x + width] = image
    return canvas


def tile(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) uint8 at `TILE` pixels or a little less: enlarged by a whole factor, or averaged down."""
    from PIL import Image

    height, width = image.shape[:2]
    share = TILE / max(height, width)
    if share >= 1:
        return image.repeat(int(share), 0).repeat(int(share), 1)
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
