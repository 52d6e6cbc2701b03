"""The decoder: codes on the grid -> image."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mergevq.config import config
from mergevq.encoder import init_transformer
from mergevq.fused import adaptive_norm, norm_silu
from mergevq.layers import GroupNorm, LayerScale, ProportionalAttention, ResBlock
from mergevq.number_types import Count, Positive


@config
class DecoderConfig:
    """Transformer at the grid's resolution, then convolutions up (Table A1)."""

    channels: Count = 64
    multipliers: tuple[Count, ...] = (1, 1, 2, 4, 8)  # finest first, as in the encoder
    res_blocks: Count = 4
    head_stride: Literal[1, 2, 4] = 1  # above 1, the last convolution enlarges too
    width: Count = 512
    depth: Count = 12
    heads: Count = 8
    layer_scale: Positive = 1e-5  # initial value; short trainings want more
    initial_std: Positive = 0.02  # of the transformer's weights; small widths want more

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.multipliers[-1] * self.channels != self.width:
            raise ValueError(
                f"the last stage has {self.multipliers[-1] * self.channels} channels, width is {self.width}: make them equal"
            )

    @property
    def enlargement(self) -> int:
        """Pixels per grid cell along a side."""
        return self.head_stride * 2 ** (len(self.multipliers) - 1)


class Decoder(nn.Module):
    """Code maps (B, G, h, w) -> images (B, 3, H, W), nominally in [-1, 1]."""

    def __init__(self, config: DecoderConfig, code_channels: int) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(code_channels, config.width, 3, padding=1)
        # Conditional positions, once before the blocks.
        self.positions = nn.Conv2d(config.width, config.width, 3, padding=1, groups=config.width)
        self.blocks = nn.ModuleList(
            GridBlock(config.width, config.heads, config.layer_scale) for _ in range(config.depth)
        )
        widths = [config.channels * m for m in config.multipliers]
        self.norms = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.ups = nn.ModuleList()
        before = config.width
        for index in reversed(range(len(widths))):
            width = widths[index]
            self.norms.append(AdaptiveGroupNorm(before, code_channels))
            count = config.res_blocks + (index > 0)  # the finest stage has one block less
            self.stages.append(
                nn.Sequential(*(ResBlock(before if i == 0 else width, width) for i in range(count)))
            )
            before = width
            if index > 0:
                self.ups.append(Upsample(width, 2))
        self.norm_out = GroupNorm(32, before, eps=1e-6)
        self.conv_out = nn.Conv2d(before, 3 * config.head_stride**2, 3, padding=1)
        for part in (self.positions, self.blocks):
            part.apply(partial(init_transformer, std=config.initial_std))

    def forward(self, codes: Tensor) -> Tensor:
        x = self.conv_in(codes)
        x = x + self.positions(x)
        for block in self.blocks:
            x = block(x)
        for index, (norm, stage) in enumerate(zip(self.norms, self.stages, strict=True)):
            x = stage(norm(x, codes))
            if index < len(self.ups):
                x = self.ups[index](x)
        x = self.conv_out(norm_silu(self.norm_out, x))
        return depth_to_space(x, self.config.head_stride)

    @property
    def last_layer(self) -> Tensor:
        """The weight that adaptive adversarial weights are measured at."""
        return self.conv_out.weight


class GridBlock(nn.Module):
    """Pre-norm transformer block on the grid, with MixFFN."""

    def __init__(self, width: int, heads: int, layer_scale: float = 1e-5) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = ProportionalAttention(width, heads), MixFFN(width, 4 * width)
        self.scale1, self.scale2 = LayerScale(width, layer_scale), LayerScale(width, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[-2]
        x = rearrange(x, "b d h w -> b (h w) d")
        x = x + self.scale1(self.attention(self.norm1(x))[0])
        x = x + self.scale2(self.mlp(self.norm2(x), height))
        return rearrange(x, "b (h w) d -> b d h w", h=height)


class MixFFN(nn.Module):
    """Linear, depth-wise 3 x 3 convolution on the grid, GELU, Linear (A.1)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, height: int) -> Tensor:
        y = rearrange(self.fc1(x), "b (h w) d -> b d h w", h=height)
        return self.fc2(F.gelu(rearrange(self.conv(y), "b d h w -> b (h w) d")))


class AdaptiveGroupNorm(nn.Module):
    """Group norm whose scale and shift come from the code map's standard deviation and mean."""

    def __init__(self, channels: int, code_channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(32, channels, eps=1e-6, affine=False)
        self.gamma, self.beta = nn.Linear(code_channels, channels), nn.Linear(code_channels, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        flat = codes.flatten(2)
        # A single cell deviates from nothing: its unbiased variance would be 0 / 0.
        variance = flat.var(-1, correction=int(flat.shape[-1] > 1))
        scale = self.gamma((variance + 1e-6).sqrt())
        return adaptive_norm(self.norm, x, scale, self.beta(flat.mean(-1)))


class Upsample(nn.Module):
    """Convolution to factor^2 times the channels, then depth to space."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels, channels * factor**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(self.conv(x), self.factor)


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """(B, f f C, H, W) -> (B, C, f H, f W), depth-column-row order: the channel is the fastest of the depth.

    In the layout of `x`, which the next norm and convolution take; contiguous on a CPU in float32.
    """
    if factor == 1:
        return x
    kept = x.is_cuda or (x.dtype == torch.bfloat16 and not x.is_contiguous())
    if kept and x.is_contiguous(memory_format=torch.channels_last):
        # A transpose of two axes with long rows inside: its gradient is one as well.
        batch, depth, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch, height, width, factor, depth // factor)
        apart = rows.transpose(2, 3).reshape(batch, height * factor, width * factor, depth // factor**2)
        return apart.permute(0, 3, 1, 2)
    return rearrange(x, "b (i j c) h w -> b c (h i) (w j)", i=factor, j=factor)
