"""Images that an allocator gives few and many tokens, each over its reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from mergevq_platform.figures.grids import on_screen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 8  # screen pixels between images
CAPTION = 18  # of the line under a reconstruction
HEAD = 26  # of an allocator's name over its images
SIDE, MIDDLE = 12, 32  # around all, and between the few and the many
DPI = 100


class ChosenImages(NamedTuple):
    """Images of one allocator: the first half has the fewest tokens, the second the most."""

    originals: Tensor  # (B, 3, H, W) in [-1, 1]
    decoded: Tensor
    counts: np.ndarray  # (B,) kept tokens
    psnr: np.ndarray  # (B,) dB


def few_and_many_figure(shown: Mapping[str, ChosenImages], budget: float) -> Figure:
    """Two rows an allocator, originals over reconstructions: left the images with the fewest tokens, right those with the most."""
    from matplotlib.figure import Figure

    screens = {name: (on_screen(found.originals), on_screen(found.decoded)) for name, found in shown.items()}
    count, height, width = next(iter(screens.values()))[0].shape[:3]
    lefts = [SIDE + at * (width + GAP) + (MIDDLE if at >= count // 2 else 0) for at in range(count)]
    block = HEAD + 2 * height + GAP // 2 + CAPTION
    total_width, total_height = lefts[-1] + width + SIDE, SIDE + len(shown) * (block + GAP)
    canvas = np.full((total_height, total_width, 3), 255, np.uint8)
    figure = Figure(figsize=(total_width / DPI, total_height / DPI), dpi=DPI, facecolor="white")
    for number, (name, found) in enumerate(shown.items()):
        top = SIDE + number * (block + GAP)
        for side, text in ((0, "fewest"), (count // 2, "most")):
            title = f"{name}, mean {budget:g}: the {text} tokens"
            place = lefts[side] / total_width, 1 - (top + HEAD - 7) / total_height
            figure.text(*place, title, ha="left", va="bottom", size=10.5, weight="bold", parse_math=False)
        for at, left in enumerate(lefts):
            for line, images in enumerate(screens[name]):
                y = top + HEAD + line * (height + GAP // 2)
                canvas[y : y + height, left : left + width] = images[at]
            under = 1 - (top + HEAD + 2 * height + GAP // 2 + 3) / total_height
            text = f"{found.counts[at]} kept, {found.psnr[at]:.1f} dB"
            figure.text(
                (left + width / 2) / total_width, under, text, ha="center", va="top", size=9, color="#333333"
            )
    figure.figimage(canvas, origin="upper")  # pixel for pixel: axes would resample
    return figure


def pixels(figure: Figure) -> np.ndarray:
    """A figure as (H, W, 3) uint8 at its own size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
