"""The patch discriminator: a logit of real against reconstructed for each of an image's overlapping patches."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor, nn

from mergevq.config import config
from mergevq.layers import GroupNorm


@config
class DiscriminatorConfig:
    """Size of a `PatchDiscriminator`; by default pix2pix's 70 x 70 pixel patches (2.77 M parameters)."""

    channels: pydantic.PositiveInt = 64
    num_layers: Annotated[int, pydantic.Field(ge=1, le=6)] = 3
    norm: Literal["batch", "group", "none"] = "batch"

    def __post_init__(self) -> None:
        if self.norm == "group" and self.channels % 8:
            raise ValueError(f"channels is {self.channels}: group norm needs a multiple of 8")

    def map_size(self, side: int) -> int:
        """The logits along a side of `side` pixels; below 1 the images are too small."""
        size = side
        for stride in [2] * self.num_layers + [1, 1]:
            size = (size - 2) // stride + 1
        return size


class PatchDiscriminator(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to float32 logits (B, 1, h, w), one for each of many patches.

    `num_layers` strided 4 x 4 convolutions, doubling the channels up to 8 times the first, then two of stride
    1 (Isola et al., "Image-to-image translation with conditional adversarial networks", section 6.1.2). Batch
    norm always uses the statistics of its batch, so the module has no buffers. `seed` alone decides the
    initial weights.
    """

    def __init__(self, config: DiscriminatorConfig | None = None, *, seed: int = 0) -> None:
        super().__init__()
        config = config or DiscriminatorConfig()
        self.config = config
        channels = [config.channels * min(2**i, 8) for i in range(config.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, config.num_layers + 1):
            stride = 2 if i < config.num_layers else 1
            conv = nn.Conv2d(channels[i - 1], channels[i], 4, stride, 1, bias=config.norm == "none")
            layers += [conv, *_norm(config.norm, channels[i]), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)
        self.logits = nn.Conv2d(channels[-1], 1, 4, padding=1)
        self._initialise(torch.Generator().manual_seed(seed))

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        with torch.autocast(
            images.device.type, enabled=False
        ):  # the hinge and LeCam compare small differences
            return self.logits(features.to(self.logits.weight.dtype))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        for module in self.modules():
            match module:
                case nn.Conv2d():
                    module.weight.normal_(0, 0.02, generator=generator)
                    if module.bias is not None:
                        module.bias.zero_()
                case nn.BatchNorm2d() | nn.GroupNorm():
                    module.weight.normal_(1, 0.02, generator=generator)
                    module.bias.zero_()


def _norm(kind: str, channels: int) -> list[nn.Module]:
    match kind:
        case "batch":
            return [nn.BatchNorm2d(channels, track_running_stats=False)]
        case "group":
            return [GroupNorm(8, channels)]
    return []
