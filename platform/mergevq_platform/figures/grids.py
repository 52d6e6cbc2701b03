"""Images over kept counts: reconstructions (the paper's Figure 3) and merged cells (Figure 4)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics import to_uint8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 128  # screen pixels that a small image is enlarged to, about: the factor is whole
LEAST = 96  # screen pixels that an image has at least
GAP = 8  # screen pixels between images
LETTER = 6.2  # screen pixels of a letter below the grid
CAPTION = 14  # screen pixels of a line under an image
HEAD, FOOT, SIDE = 30, 12, 12  # screen pixels around them
TINT = 0.5  # share of the cluster's colour over the grey image
DPI = 100


def reconstruction_grid(originals: Tensor, reconstructed: Mapping[int, Tensor]) -> Figure:
    """A row per image: the original, then its reconstructions, most kept tokens first.

    Images (B, 3, H, W) in [-1, 1], the same for every kept count. Raises `InputError` where shapes differ.
    """
    for keep, images in reconstructed.items():
        if images.shape != originals.shape:
            raise InputError(
                f"reconstructions at {keep} kept tokens are {tuple(images.shape)}, the originals {tuple(originals.shape)}"
            )
    columns = {"original": on_screen(originals)}
    columns |= {_label(keep): on_screen(reconstructed[keep]) for keep in sorted(reconstructed, reverse=True)}
    return _grid(columns)


def cluster_grid(originals: Tensor, assigned: Mapping[int, Tensor]) -> Figure:
    """A row per image: the original, then its clusters of merged cells, most kept tokens first.

    Cells of one colour are one kept token; cells that stayed alone show the image in grey. Images (B, 3, H, W) in
    [-1, 1], assignments (B, N) int64. Raises `InputError` where they do not go together.
    """
    screen = on_screen(originals)
    columns = {"original": screen}
    for keep in sorted(assigned, reverse=True):
        columns[_label(keep)] = cluster_maps(screen, assigned[keep], originals.shape[-2:], keep)
    return _grid(columns, foot="Cells of one colour are one kept token; cells in grey were not merged.")


def cluster_maps(screen: np.ndarray, assignment: Tensor, shape: Sequence[int], keep: int) -> np.ndarray:
    """Images (B, h, w, 3) uint8 at screen size with their clusters over them, of assignments (B, N) int64 at `keep` tokens.

    `shape`: (H, W) of the images themselves. Raises `InputError` where they do not go together.
    """
    if assignment.ndim != 2 or len(assignment) != len(screen):
        raise InputError(
            f"the assignment at {keep} kept tokens is {tuple(assignment.shape)}: it must be ({len(screen)}, N)"
        )
    height, width = shape
    maps = assignment.cpu().numpy().reshape(-1, *_grid_shape(assignment.shape[1], height, width))
    return np.stack([_tinted(image, cells) for image, cells in zip(screen, maps, strict=True)])


def worst_grid(
    originals: Tensor,
    reconstructed: Mapping[int, Tensor],
    rows: Sequence[int],
    psnr: Mapping[int, np.ndarray],
) -> Figure:
    """`reconstruction_grid` of the images that come out worst, their PSNR under each; `rows` number them in the split."""
    columns = {"original": on_screen(originals)}
    captions = {"original": [f"row {row}" for row in rows]}
    for keep in sorted(reconstructed, reverse=True):
        columns[_label(keep)] = on_screen(reconstructed[keep])
        captions[_label(keep)] = [f"{value:.1f} dB" for value in psnr[keep]]
    foot = f"The lowest PSNR of the split at {max(reconstructed)} kept tokens, lowest first."
    return _grid(columns, foot=foot, captions=captions)


def neighbour_grid(queries: Tensor, found: Tensor, keep: int) -> Figure:
    """A row per image of the evaluation split (B, 3, H, W): itself, then its nearest training images (B, k, …)."""
    columns = {"image": on_screen(queries)}
    columns |= {f"nearest {rank + 1}": on_screen(found[:, rank]) for rank in range(found.shape[1])}
    foot = f"Training images whose [CLS] feature has the largest cosine with the image's, {keep} kept tokens."
    return _grid(columns, foot=foot)


def _label(keep: int) -> str:
    return f"{keep} kept"


def on_screen(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W) in [-1, 1] as (B, h, w, 3) uint8, enlarged by a whole factor so that every pixel stays a square."""
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise InputError(f"images are {tuple(images.shape)}: they must be (B, 3, H, W), B at least 1")
    array = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    side = max(array.shape[1:3])
    factor = max(1, round(CELL / side), math.ceil(LEAST / side))
    return array.repeat(factor, 1).repeat(factor, 2)


def _grid(
    columns: Mapping[str, np.ndarray], foot: str = "", captions: Mapping[str, Sequence[str]] | None = None
) -> Figure:
    rows, height, width = next(iter(columns.values())).shape[:3]
    gap = GAP + (CAPTION if captions else 0)  # below each image
    total_width = 2 * SIDE + len(columns) * (width + GAP) - GAP
    said = textwrap.wrap(foot, int((total_width - 2 * SIDE) / LETTER)) if foot else []
    foot_height = FOOT + (4 + 14 * len(said) if said else 0)
    total_height = HEAD + rows * (height + gap) - GAP + foot_height
    canvas = np.full((total_height, total_width, 3), 255, np.uint8)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI)
    for column, (label, images) in enumerate(columns.items()):
        x = SIDE + column * (width + GAP)
        for row, image in enumerate(images):
            y = HEAD + row * (height + gap)
            canvas[y : y + height, x : x + width] = image
            if captions:
                place = (x + width / 2) / total_width, 1 - (y + height + 3) / total_height
                figure.text(*place, captions[label][row], ha="center", va="top", size=8.5, color="#333333")
        figure.text(
            (x + width / 2) / total_width, 1 - (HEAD - 8) / total_height, label, ha="center", va="bottom", size=10.5,
            weight="bold" if column == 0 else "normal",
        )  # fmt: skip
    if said:
        figure.text(SIDE / total_width, 7 / total_height, "\n".join(said), size=9, color="#555555")
    figure.figimage(canvas, origin="upper")  # pixel for pixel: axes would resample
    return figure


def _grid_shape(cells: int, height: int, width: int) -> tuple[int, int]:
    patch = math.sqrt(height * width / cells)
    rows, columns = round(height / patch), round(width / patch)
    if rows * columns != cells or height % rows or width % columns:
        raise InputError(f"{cells} cells do not tile an image of {height} x {width} px with squares")
    return rows, columns


def _tinted(image: np.ndarray, cells: np.ndarray) -> np.ndarray:
    # One image (h, w, 3) uint8 at screen size with its clusters (rows, columns) over it.
    height, width = image.shape[:2]
    grey = image.astype(np.float64) @ (0.299, 0.587, 0.114)
    grey = np.repeat((0.25 * 255 + 0.6 * grey)[..., None], 3, 2)  # dimmed towards a middle tone
    colours = cluster_colours(cells)
    tint = np.where(colours[..., None] >= 0, palette()[colours], -1.0)
    tint = _enlarged(tint, height, width)
    drawn = np.where(tint >= 0, (1 - TINT) * grey + TINT * tint, grey)
    drawn[_borders(_enlarged(cells, height, width))] = 255
    return drawn.round().clip(0, 255).astype(np.uint8)


def cluster_colours(cells: np.ndarray) -> np.ndarray:
    """Clusters (rows, columns) -> each cell's place in `palette`, the largest cluster first; -1 for cells that stayed alone."""
    slots, sizes = np.unique(cells, return_counts=True)
    merged = slots[sizes > 1][np.argsort(-sizes[sizes > 1], kind="stable")]
    colours = np.full(cells.shape, -1)
    for rank, slot in enumerate(merged):
        colours[cells == slot] = rank % len(palette())
    return colours


def cluster_overlay(
    assignment: Tensor, size: tuple[int, int], side: int = 16
) -> tuple[np.ndarray, np.ndarray]:
    """The clusters of one image of `size` (height, width) as a layer over it, `side` pixels a cell.

    Assignment (N,) int64. Returns an index image (h, w) uint8 and its colours (66, 4) uint8, red, green, blue and opacity:
    0 is a cell that was not merged, clear; 1 the line between two clusters; the others `palette`. Raises `InputError` where
    cells and size do not go together.
    """
    cells = assignment.cpu().numpy().reshape(_grid_shape(len(assignment), *size))
    drawn = _enlarged(cluster_colours(cells) + 2, *(side * count for count in cells.shape))
    drawn[drawn == 1] = 0
    drawn[_borders(_enlarged(cells, *drawn.shape))] = 1
    tints = np.column_stack([palette(), np.full(len(palette()), 255 * TINT)])
    return drawn.astype(np.uint8), np.vstack([[0, 0, 0, 0], [255, 255, 255, 255], tints]).round().astype(
        np.uint8
    )


def _borders(large: np.ndarray) -> np.ndarray:
    # A line of one pixel on the upper and left side of every border between two clusters.
    borders = np.zeros(large.shape, bool)
    borders[:-1] |= large[1:] != large[:-1]
    borders[:, :-1] |= large[:, 1:] != large[:, :-1]
    return borders


def _enlarged(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    return cells.repeat(height // cells.shape[0], 0).repeat(width // cells.shape[1], 1)


@cache
def palette(count: int = 64) -> np.ndarray:
    """Colours (count, 3) in [0, 255], each as far as possible from those before it (in CIE Lab): saturated, mid-light."""
    steps = np.linspace(0, 1, 14)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = _lab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])  # no neon, no grey
    suits = (lab[:, 0] > 30) & (lab[:, 0] < 85) & (abs(chroma - 67) < 27)
    rgb, lab = rgb[suits], lab[suits]
    chosen = [int(np.square(rgb - (0.1, 0.4, 0.9)).sum(1).argmin())]  # starts at blue; any start does
    distance = np.full(len(lab), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, np.square(lab - lab[chosen[-1]]).sum(1))
        chosen.append(int(distance.argmax()))
    return 255 * rgb[chosen]


def _lab(rgb: np.ndarray) -> np.ndarray:
    # sRGB in [0, 1] to CIE Lab under D65 (IEC 61966-2-1).
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ np.array([[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]])
    t = xyz / (0.9505, 1.0, 1.089)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
