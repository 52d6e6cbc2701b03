"""PSNR, SSIM and MS-SSIM of 8-bit images: the mean over images of each image's value."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.errors import InputError
from mergevq.metrics.accumulate import Accumulator, added, float64, total

WINDOW = 11  # pixels; 3.5 sigma either side
SIGMA = 1.5  # pixels
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, finest first


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as the uint8 that a file of them would hold: clamped and rounded. Keeps shape and device."""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


class ImageMean(Accumulator):
    """The mean over images of a score of (image, reconstruction)."""

    key: ClassVar[str]

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | None = None  # scalar

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Add images and reconstructions, both (B, 3, H, W) in [-1, 1]; both are rounded to 8 bits first.

        Raises `InputError` where the shapes differ or are no images.
        """
        if images.ndim != 4 or images.shape != reconstructions.shape:
            raise InputError(
                f"images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)}: "
                "both must be (B, 3, H, W) of one size"
            )
        scores = self.scores(float64(to_uint8(images)), float64(to_uint8(reconstructions)))
        self.count += len(scores)
        self.sum = added(self.sum, scores.sum())

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        """The score (B,) of each pair; both (B, 3, H, W) float64 in [0, 255]."""
        raise NotImplementedError

    def merge(self, other: Self) -> Self:
        """The mean over both sets of images, on the CPU."""
        merged = self.cpu_copy()
        merged.count += other.count
        merged.sum = added(merged.sum, other.cpu_copy().sum)
        return merged

    def compute(self) -> dict[str, float]:
        """The mean by its name; NaN before the first image."""
        return {self.key: total(self.sum) / self.count if self.count else math.nan}


class Psnr(ImageMean):
    """Peak signal-to-noise ratio in dB, per image over all channels, data range 255.

    An exact reconstruction would have an infinite ratio, and so would every mean that it is part of. It counts as the best
    that is not exact, with one of its values off by one level: 77 dB at 16 px, 101 dB at 256 px. No other value changes.
    """

    key = "psnr"

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        error = (x - y).square().mean((1, 2, 3)).clamp(min=1 / math.prod(x.shape[1:]))
        return 10 * torch.log10(255.0**2 / error)


class Ssim(ImageMean):
    """Structural similarity, at most 1: Gaussian window of 11 px (sigma 1.5), K = (0.01, 0.03), mean over channels.

    Wang et al. 2004, eq. 13; windows that reach over the border are left out, as in scikit-image with
    `gaussian_weights=True, use_sample_covariance=False`. Images under 11 px raise `InputError`.
    """

    key = "ssim"

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if min(height, width) < WINDOW:
            raise InputError(f"SSIM needs images of at least {WINDOW} px, got {height} x {width}")
        luminance, contrast = _similarity(x, y)
        return (luminance * contrast).mean((1, 2, 3))


class MsSsim(ImageMean):
    """SSIM over scales (Wang, Simoncelli & Bovik 2003), at most 1, mean over channels.

    Contrast and structure are compared at five scales, each half as large as the one before, luminance at the last;
    every one is a mean over the image, raised to its published weight. Negative ones, of images that contradict
    each other, count as 0. `scales` under five leave the coarsest out, share the weights among the others, and are in
    the metric's name. Images that do not fill the window at the last scale raise `InputError`.

    Where a side is odd, halving counts its last line twice: every pixel of the coarser image is a mean of the image's
    own. The package pytorch-msssim pads zeros on both sides there, so that its numbers differ: by 5e-5 for smooth
    images of 180 px, ten times as much for blocky ones. While sides stay even they are the same.
    """

    def __init__(self, scales: int = 5) -> None:
        super().__init__()
        if not 1 <= scales <= len(SCALE_WEIGHTS):
            raise InputError(f"MS-SSIM has 1 to {len(SCALE_WEIGHTS)} scales, not {scales}")
        self.scales = scales

    @property
    def key(self) -> str:  # type: ignore[override]  # of this one, the scales decide
        """The metric's name."""
        return "ms_ssim" if self.scales == len(SCALE_WEIGHTS) else f"ms_ssim_{self.scales}_scales"

    @staticmethod
    def most_scales(height: int, width: int) -> int:
        """The number of scales of images of this size, 0 to 5."""
        return sum(min(height, width) > (WINDOW - 1) * 2**scale for scale in range(len(SCALE_WEIGHTS)))

    def merge(self, other: Self) -> Self:
        """As every mean's; raises `InputError` for different numbers of scales."""
        if self.scales != other.scales:
            raise InputError(f"MS-SSIM of {self.scales} and of {other.scales} scales do not merge")
        return super().merge(other)

    def scores(self, x: Tensor, y: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        most = self.most_scales(height, width)
        if self.scales > most:
            need = (WINDOW - 1) * 2 ** (self.scales - 1) + 1
            fix = f"use at most {most} scales" if most else "use larger images"
            raise InputError(
                f"MS-SSIM of {self.scales} scales needs images of at least {need} px, got {height} x {width}: {fix}"
            )
        weights = torch.tensor(SCALE_WEIGHTS[: self.scales], dtype=x.dtype, device=x.device)
        weights = weights * (sum(SCALE_WEIGHTS) / weights.sum())
        score = x.new_ones(x.shape[:2])
        for scale, weight in enumerate(weights):
            luminance, contrast = _similarity(x, y)
            last = scale == self.scales - 1
            part = (luminance * contrast if last else contrast).mean((2, 3)).clamp(min=0)
            score = score * part**weight
            if not last:
                x, y = _halved(x), _halved(y)
        return score.mean(1)


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    # Luminance, and contrast with structure, of every whole window: (B, C, H - 10, W - 10) each.
    height, width = x.shape[-2:]
    down, across = _blur(height, x), _blur(width, x).T

    def local(values: Tensor) -> Tensor:
        return down @ values @ across

    mean_x, mean_y = local(x), local(y)
    product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
    covariance, variances = local(x * y) - product, local(x.square() + y.square()) - squares
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return (2 * product + c1) / (squares + c1), (2 * covariance + c2) / (variances + c2)


def _halved(x: Tensor) -> Tensor:
    # Means of 2 x 2 pixels; an odd side's last line is used twice.
    height, width = x.shape[-2:]
    return F.avg_pool2d(F.pad(x, (0, width % 2, 0, height % 2), mode="replicate"), 2)


def _blur(size: int, like: Tensor) -> Tensor:
    # The Gaussian window as a banded matrix (size - 10, size): two products beat a float64 convolution fourfold.
    offset = torch.arange(size) - torch.arange(size - WINDOW + 1).unsqueeze(1) - WINDOW // 2
    weights = torch.exp(-0.5 * (offset.double() / SIGMA).square()).where(offset.abs() <= WINDOW // 2, 0)
    return (weights / weights.sum(1, keepdim=True)).to(like)
