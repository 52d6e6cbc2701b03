"""Work of a training: FLOPs counted at its first passes, and the rates that makers state for their devices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Dense matrix products, TFLOP/s, as makers state them: (bfloat16 and float16, tf32). The first name that is in the device's,
# by whole words, holds; longer ones come before shorter.
STATED_TFLOPS: dict[str, tuple[float, float]] = {
    "B200": (2250, 1125),
    "H200": (989, 495),
    "H100 PCIe": (756, 378),
    "H100 NVL": (835, 418),
    "H100": (989, 495),
    "H800": (989, 495),
    "H20": (148, 74),
    "A100": (312, 156),
    "A800": (312, 156),
    "A40": (150, 75),
    "A30": (165, 82),
    "A10G": (70, 35),
    "A10": (125, 62.5),
    "L40S": (362, 183),
    "L40": (181, 90),
    "L4": (121, 60),
}


def stated_peak(device_name: str, precision: str) -> float | None:
    """FLOP/s that the maker states for dense matrix products of a recipe's `precision`; None for a device that is not listed.

    float32 is counted as tf32, which training uses on a GPU.
    """
    for name, (half, single) in STATED_TFLOPS.items():
        if re.search(rf"\b{name}\b", device_name):
            return (single if precision == "float32" else half) * 1e12
    return None


class FlopCount:
    """FLOPs of an image, forward and backward, by kept count; of matrix products, convolutions and attention.

    Counted at the first pass of each kept count, on a GPU alone: a pass that is counted is as slow as Python.
    """

    def __init__(self, device: torch.device) -> None:
        self.enabled = device.type == "cuda"
        self.per_image: dict[int | None, float] = {}

    def missing(self, keep: int | None) -> bool:
        """Whether passes of this kept count are still to be counted."""
        return self.enabled and keep not in self.per_image

    @contextmanager
    def counting(self, keep: int | None, images: int) -> Iterator[None]:
        """Count what is computed within, a pass of so many images."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            yield
        self.per_image[keep] = counter.get_total_flops() / images
