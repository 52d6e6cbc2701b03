"""LPIPS on VGG16 as a metric (Zhang et al. 2018, version 0.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mergevq.config import config
from mergevq.losses.perceptual import Lpips, LpipsPerceptualConfig
from mergevq.metrics.pixels import to_uint8
from mergevq.paths import WeightsPath
from mergevq.pretrained import FrozenModule
from mergevq.weights_file import file_sha256

# Of torchvision's `vgg16-397923af.pth`, by PyTorch's rule for names of weight files, and of the lpips package's `vgg.pth`.
BACKBONE_SHA256_BEGINS = "397923af"
HEADS_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"


@config
class LpipsFilesConfig:
    """The two weight files of LPIPS.

    `backbone`: torchvision's `vgg16-397923af.pth`; `heads`: `weights/v0.1/vgg.pth` of the lpips package. With other
    weights of these layouts the metric has another name.
    """

    backbone: WeightsPath
    heads: WeightsPath
    backbone_sha256: str | None = None  # what each file must hash to; none: whatever it hashes to is recorded
    heads_sha256: str | None = None


class LpipsDistance(FrozenModule):
    """Images and reconstructions (B, 3, H, W) in [-1, 1], both rounded to 8 bits first, to distances (B,) float32.

    Give them to `Mean(distance.name)`. `identity` says what else numbers must share to be compared. Raises `InputError`
    for files that are missing or do not fit; `key` is the configuration key of `files`.
    """

    name: str
    identity: dict[str, Any]

    def __init__(self, files: LpipsFilesConfig, *, key: str = "evaluation.lpips") -> None:
        super().__init__()
        term = LpipsPerceptualConfig(
            backbone=files.backbone,
            heads=files.heads,
            backbone_sha256=files.backbone_sha256,
            heads_sha256=files.heads_sha256,
        )
        self.network = Lpips(term, key=key)
        backbone, heads = file_sha256(files.backbone), file_sha256(files.heads)
        published = backbone.startswith(BACKBONE_SHA256_BEGINS) and heads == HEADS_SHA256
        self.name = "lpips_vgg" if published else f"lpips_vgg_{backbone[:8]}_{heads[:8]}"
        self.identity = {
            "description": "LPIPS 0.1 on VGG16"
            if published
            else "LPIPS with other weights than the published",
            "backbone_sha256": backbone,
            "heads_sha256": heads,
            "preprocessing": "rounded to uint8",
        }
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            true, decoded = (to_uint8(x).float() / 127.5 - 1 for x in (images, reconstructions))
            return self.network.per_image(self.network.differences(decoded, true))
