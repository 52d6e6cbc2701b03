"""The fixed random network `random_v1`: features for the Fréchet distance without any file."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.metrics.features import (
    Extractor,
    unit_range,
)

RANDOM_V1_SHA256 = "94ed8e012e5ec5807d75e78813b6ed2492f1fdcb02781b51815e3eba1b08270e"


RANDOM_V1_CHANNELS = (24, 32, 44)


class RandomExtractor(Extractor):
    """`random_v1`: three random convolutions with ReLU; the channels' means and deviations after each are the features.

    Random features order blur, noise and compression by strength, each among themselves; they do not rank different
    faults, or models, as people or ImageNet features would (Lee et al. 2022).
    """

    weights: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        weights = random_v1_weights()
        assert weights_sha256(weights) == RANDOM_V1_SHA256, (
            "the weights of random_v1 changed: numbers would not compare"
        )
        self.stages = len(weights)
        for stage, weight in enumerate(weights):
            self.register_buffer(f"weight_{stage}", torch.from_numpy(weight))
        self.name = "random_v1"
        self.identity = {
            "description": "features of a fixed random network (random_v1, not ImageNet FID)",
            "weights_sha256": RANDOM_V1_SHA256,
            "dim": 2 * sum(RANDOM_V1_CHANNELS),
            "resize": "none",
            "preprocessing": "rounded to uint8, then to [-1, 1]",
        }

    def features(self, images: Tensor) -> Tensor:
        pooled, x = [], unit_range(images)
        for stage in range(self.stages):
            # Replicated borders: a frame of zeros would be an edge in every image.
            padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
            x = F.conv2d(padded, getattr(self, f"weight_{stage}"), stride=1 if stage == 0 else 2).relu()
            pooled += [x.mean((2, 3)), x.std((2, 3), correction=0)]
        return torch.cat(pooled, 1)


def random_v1_weights() -> list[np.ndarray]:
    """The kernels (out, in, 3, 3) float32 of `random_v1`: uniform with variance 2 / fan-in (He et al. 2015).

    From raw Philox output by exact arithmetic: the same bits on every platform and with every version of NumPy,
    which promises that only of a bit generator's raw stream.
    """
    bits = np.random.Philox(key=20250401)
    channels, weights = (3, *RANDOM_V1_CHANNELS), []
    for inputs, outputs in pairwise(channels):
        shape = (outputs, inputs, 3, 3)
        raw = bits.random_raw(math.prod(shape)) >> np.uint64(40)
        unit = (raw.astype(np.float64) + 0.5) / 2**23 - 1  # in (-1, 1)
        weights.append((unit * math.sqrt(6 / (9 * inputs))).astype(np.float32).reshape(shape))
    return weights


def weights_sha256(weights: list[np.ndarray]) -> str:
    """The hash of arrays one after the other, as little-endian float32."""
    return hashlib.sha256(b"".join(weight.astype("<f4").tobytes() for weight in weights)).hexdigest()
