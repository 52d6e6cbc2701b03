"""What a group norm does to the values of each channel."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """normed = (value - mean) * rstd of its group, z = normed * weight + bias of its channel."""

    mean: Tensor  # (B, groups) float32
    rstd: Tensor  # (B, groups) float32
    weight: Tensor  # (C,), or (B, C) of each image
    bias: Tensor  # as the weight

    @property
    def image_stride(self) -> int:
        """The stride of weight and bias from image to image."""
        return self.weight.stride(0) if self.weight.ndim > 1 else 0
