"""The encoder: image -> N grid tokens -> K kept tokens and a summary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Annotated, Literal, NamedTuple

import pydantic
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mergevq import merging
from mergevq.config import config
from mergevq.image_size import grid_of, height_width
from mergevq.inputs import check_images, whole_count
from mergevq.layers import GroupNorm, MergeBlock, ResBlock, sincos
from mergevq.merge_schedule import merge_schedule
from mergevq.number_types import Count, Positive, ProperFraction, WholeNumber
from mergevq.ragged_merging import ragged_layers

Positions = Literal["none", "sincos", "learned"]


@config
class HybridEncoderConfig:
    """Convolutions, then transformer (variants G and G+R; Table A1)."""

    kind: Literal["hybrid"] = "hybrid"
    channels: Count = 64
    multipliers: tuple[Count, ...] = (1, 1, 2, 4, 8)
    res_blocks: WholeNumber = 4
    stem_stride: Literal[1, 2, 4] = (
        1  # above 1, the first convolution reduces too (small images, little time)
    )
    width: Count = 512
    depth: Count = 12
    heads: Count = 8
    positions: Positions = "none"
    inflection: float = -0.5  # of the merge schedule over the layers
    layer_scale: Positive = 1e-5  # initial value; short trainings want more
    initial_std: Positive = 0.02  # of the transformer's weights; small widths want more
    summary_std: Positive = 1e-6  # of the summary token's start
    drop_path: ProperFraction = 0.0  # of the last block, rising from 0 at the first

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.multipliers[-1] * self.channels != self.width:
            raise ValueError(
                f"the last stage has {self.multipliers[-1] * self.channels} channels, width is {self.width}: make them equal"
            )

    @property
    def reduction(self) -> int:
        """Pixels per grid cell along a side."""
        return self.stem_stride * 2 ** (len(self.multipliers) - 1)


@config
class ViTEncoderConfig:
    """A plain vision transformer (variant R; Table A1)."""

    kind: Literal["vit"] = "vit"
    patch: Count = 16
    width: Count = 768
    depth: Count = 12
    heads: Count = 12
    positions: Positions = "sincos"  # the release has none, so its encoder cannot tell where a patch lies
    inflection: float = -0.5  # of the merge schedule over the layers
    layer_scale: Positive = 1e-5  # initial value; short trainings want more
    initial_std: Positive = 0.02  # of the transformer's weights; small widths want more
    summary_std: Positive = 1e-6  # of the summary token's start
    drop_path: ProperFraction = 0.0  # of the last block, rising from 0 at the first

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def reduction(self) -> int:
        """Pixels per grid cell along a side."""
        return self.patch


EncoderConfig = Annotated[HybridEncoderConfig | ViTEncoderConfig, pydantic.Field(discriminator="kind")]


class EncoderOutput(NamedTuple):
    """The encoder's output in canonical order: summary (B, D), kept tokens (B, K, D), their source."""

    summary: Tensor
    tokens: Tensor
    source: merging.Source

    def mean(self) -> Tensor:
        """The kept tokens (B, D) averaged over the grid cells that they stand for."""
        return merging.mean_over_cells(self.tokens, self.source.size)


class Cells(NamedTuple):
    """Images as grid tokens, before merging: tokens (B, 1 + N, D), the summary token first, and the grid's sides."""

    tokens: Tensor
    rows: int
    columns: int

    def of(self, images: Sequence[int]) -> Cells:
        """The cells of some images, by their positions in the batch."""
        chosen = torch.tensor(images, device=self.tokens.device)
        return self._replace(tokens=self.tokens.index_select(0, chosen))


class Encoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> K kept tokens of width D, a summary and the source."""

    def __init__(self, config: HybridEncoderConfig | ViTEncoderConfig, grid: int | tuple[int, int]) -> None:
        super().__init__()
        self.config, self.grid = config, height_width(grid)
        self.stem = ConvStem(config) if isinstance(config, HybridEncoderConfig) else PatchStem(config)
        self.summary_token = nn.Parameter(torch.randn(1, 1, config.width) * config.summary_std)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.randn(1, self.grid[0] * self.grid[1], config.width) * 0.02)
        rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        self.blocks = nn.ModuleList(
            MergeBlock(config.width, config.heads, config.layer_scale, rate) for rate in rates
        )
        self.blocks.apply(partial(init_transformer, std=config.initial_std))

    def forward(self, images: Tensor, keep: int) -> EncoderOutput:
        """Encode, keeping exactly `keep` tokens; raises `InputError` for a shape, dtype or count that cannot be."""
        keep = whole_count(keep)
        self.check(images, [keep])
        return self.merge(self.embed(images), keep)

    def check(self, images: Tensor, counts: Iterable[int]) -> None:
        """Raise `InputError` for images of a shape or dtype that cannot be, and for counts that the layers cannot reach."""
        check_images(images, like=self.summary_token)
        rows, columns = self._grid(images)
        for keep in counts:
            self._schedule(rows * columns, keep)

    def embed(self, images: Tensor) -> Cells:
        """Images (B, 3, H, W) that `check` has passed -> their grid tokens, the positions added."""
        rows, columns = self._grid(images)
        x = rearrange(self.stem(images), "b d h w -> b (h w) d")
        x = x + self.position(rows, columns, x)
        x = torch.cat([self.summary_token.expand(len(x), -1, -1).to(x.dtype), x], dim=1)
        return Cells(x, rows, columns)

    def merge(self, cells: Cells, keep: int) -> EncoderOutput:
        """Grid tokens -> exactly `keep` kept tokens, merged from layer to layer."""
        x = cells.tokens
        size: Tensor | None = None
        assignment = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        for block, r in zip(self.blocks, self._schedule(x.shape[1] - 1, keep), strict=True):
            x, size, slot = block(x, size, r)
            if slot is not None:
                assignment = slot.gather(1, assignment)
        tokens, source = merging.canonical(x[:, 1:], assignment[:, 1:] - 1, (cells.rows, cells.columns))
        return EncoderOutput(x[:, 0], tokens, source)

    def merge_each(self, cells: Cells, groups: Mapping[int, Sequence[int]]) -> EncoderOutput:
        """Grid tokens -> as many kept tokens of each image as it is to keep, in one pass of every layer.

        `groups`: kept count, ascending -> its images, which lie in `cells` in this order. K is the largest count; what an
        image has less is padded at the end with tokens of 0 and of size 0.
        """
        x = cells.tokens
        size: Tensor | None = None
        assignment = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        schedules = [(len(rows), self._schedule(x.shape[1] - 1, keep)) for keep, rows in groups.items()]
        layers = ragged_layers(x.shape[1], schedules, x.device)
        for block, layer in zip(self.blocks, layers, strict=True):
            x, size, slot = block(x, size, layer or 0)
            if slot is not None:
                assignment = slot.gather(1, assignment)
        tokens, source = merging.canonical(x[:, 1:], assignment[:, 1:] - 1, (cells.rows, cells.columns))
        return EncoderOutput(x[:, 0], tokens.where((source.size > 0)[..., None], 0), source)

    def match_similarities(self, cells: Cells, keep: int) -> Tensor:
        """The cosine similarities (B, N - keep) float32 of all pairs that are merged on the way to `keep` tokens, layer by layer.

        Ends at the last matching: its MLP and what comes after are not computed.
        """
        x = cells.tokens
        size: Tensor | None = None
        schedule = self._schedule(x.shape[1] - 1, keep)
        last = max((layer for layer, r in enumerate(schedule) if r), default=-1)
        found = [x.new_zeros(len(x), 0, dtype=torch.float32)]
        for layer, (block, r) in enumerate(zip(self.blocks[: last + 1], schedule, strict=False)):
            assert isinstance(block, MergeBlock)
            x, metric = block.attend(x, size)
            if r:
                chosen = merging.match(metric, r)
                found.append(chosen.similarity)
                ones = x.new_ones(x.shape[:2], dtype=torch.float32) if size is None else size
                x, size = merging.merge(chosen, x, ones)
            if layer < last:
                x = block.feed(x)
        return torch.cat(found, dim=1)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        height, width = images.shape[-2:]
        return grid_of((height, width), self.config.reduction)

    def _schedule(self, grid_tokens: int, keep: int) -> tuple[int, ...]:
        return merge_schedule(grid_tokens, keep, self.config.depth, self.config.inflection)

    def position(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """Position codes (1, rows * columns, D) for any grid; zero where the encoder has none."""
        match self.config.positions:
            case "none":
                return like.new_zeros(())
            case "sincos":
                return sincos(rows, columns, self.config.width, like.device).to(like.dtype)[None]
            case "learned":
                if (rows, columns) == self.grid:
                    return self.positions.to(like.dtype)
                grid = rearrange(self.positions, "1 (h w) d -> 1 d h w", h=self.grid[0])
                table = F.interpolate(grid.float(), (rows, columns), mode="bicubic", align_corners=False)
                return rearrange(table, "1 d h w -> 1 (h w) d").to(like.dtype)


class ConvStem(nn.Module):
    """Residual convolution stages, halving the resolution between them."""

    def __init__(self, config: HybridEncoderConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.multipliers]
        stride = config.stem_stride
        self.conv_in = (
            nn.Conv2d(3, config.channels, 3, padding=1, bias=False)
            if stride == 1
            else nn.Conv2d(3, config.channels, 2 * stride, stride=stride, padding=stride // 2, bias=False)
        )
        self.stages = nn.ModuleList()
        self.downs = nn.ModuleList()
        before = config.channels
        for index, width in enumerate(widths):
            blocks = [ResBlock(before if i == 0 else width, width) for i in range(config.res_blocks)]
            self.stages.append(nn.Sequential(*blocks))
            before = width if blocks else before
            if index < len(widths) - 1:
                self.downs.append(nn.Conv2d(before, before, 3, stride=2, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index < len(self.downs):
                x = self.downs[index](x)
        return x


class PatchStem(nn.Module):
    """One convolution per patch, then instance norm (GroupNorm with one channel a group)."""

    def __init__(self, config: ViTEncoderConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.norm = GroupNorm(config.width, config.width, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv_in(images))


def init_transformer(module: nn.Module, std: float = 0.02) -> None:
    """Linear and convolution layers of a transformer from a truncated normal, biases zero; 0.02 as released."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
