"""Layers of encoder and decoder: residual convolution blocks, merging transformer blocks, positions."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from mergevq import merging
from mergevq.attention import attend
from mergevq.fused import norm_silu
from mergevq.ragged_merging import RaggedLayer, merge_each, slots_each


class GroupNorm(nn.GroupNorm):
    """PyTorch's group norm, (B, C, ...) to the same shape, exact in every memory layout.

    PyTorch's own adds up squares in float32 where memory is channels-last on a CPU (2.14): means of 100 deviations
    leave errors of 0.03, of 1,000 deviations nothing right. There it runs on contiguous memory, forward and backward.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.ndim < 4:
            return super().forward(x)
        return super().forward(x.flatten(2)).view(x.shape)  # three dimensions have no channels-last layout

    def of_tokens(self, x: Tensor, valid: Tensor) -> Tensor:
        """Tokens (B, T, C) normalised over those that are `valid`, (B, T) bool; what the others get means nothing.

        In float32 or better, returned in the dtype of the weights. An image's result is `forward`'s of its valid tokens.
        """
        grouped = x.unflatten(-1, (self.num_groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
        weights = valid[..., None, None].to(grouped.dtype)
        weights = weights / (weights.sum(1, keepdim=True) * grouped.shape[-1])
        mean = (grouped * weights).sum((1, 3), keepdim=True)
        variance = ((grouped - mean).square() * weights).sum((1, 3), keepdim=True)
        normed = ((grouped - mean) * (variance + self.eps).rsqrt()).flatten(-2).to(self.weight.dtype)
        return normed * self.weight + self.bias


class ResBlock(nn.Module):
    """GN, SiLU, conv, GN, SiLU, conv with a skip (MAGVIT-v2's block).

    With `recompute`, a forward pass with gradients keeps only the outputs of convolutions; norms and SiLU are computed
    again in the backward pass, which can then run once: less memory, the same numbers.
    """

    recompute = False

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(32, channels_in, eps=1e-6)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = GroupNorm(32, channels_out, eps=1e-6)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        same = channels_in == channels_out
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return self.computed(x)
        return checkpoint(
            self._without_cached_casts,
            x,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=_convolutions_kept,
        )

    def _without_cached_casts(self, x: Tensor) -> Tensor:
        # A second view would find the weights cast by the first, and its backward pass would not: operations must be the same.
        device = x.device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            return self.computed(x)

    def computed(self, x: Tensor) -> Tensor:
        """The block's output; all that its gradient needs is kept."""
        y = self.conv1(norm_silu(self.norm1, x))
        return self.skip(x) + self.conv2(norm_silu(self.norm2, y))


def set_recompute(module: nn.Module, recompute: bool = True) -> None:
    """Set whether the convolution blocks of `module` recompute norms and activations in the backward pass, see `ResBlock`."""
    for part in module.modules():
        if isinstance(part, ResBlock):
            part.recompute = recompute


def _convolutions_kept() -> tuple[AbstractContextManager, AbstractContextManager]:
    return create_selective_checkpoint_contexts([torch.ops.aten.convolution.default])


class ProportionalAttention(nn.Module):
    """Multi-head self-attention; with token sizes, proportional: logits + log size of the key (equation 14)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, size: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> (B, T, D) and the keys averaged over heads (B, T, D / heads), the metric of matching."""
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
        bias = None if size is None else size.log()[:, None, None, :].to(q.dtype)
        out = attend(q, k, v, bias)
        return self.proj(rearrange(out, "b h t d -> b t (h d)")), k.mean(dim=1)


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, width: int, initial: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a branch for whole images and scales it up in the others (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * kept / (1 - self.rate)


class Mlp(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MergeBlock(nn.Module):
    """Pre-norm transformer block that merges r tokens between attention and MLP."""

    def __init__(self, width: int, heads: int, layer_scale: float = 1e-5, drop_path: float = 0.0) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = ProportionalAttention(width, heads), Mlp(width, 4 * width)
        self.scale1, self.scale2 = LayerScale(width, layer_scale), LayerScale(width, layer_scale)

    def forward(
        self, x: Tensor, size: Tensor | None, r: int | RaggedLayer
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Tokens (B, T, D), sizes (B, T) or None -> tokens (B, T - r, D), sizes, and the slot of each token.

        `r` may differ by image: then T and T - r are of the longest, and sizes are 0 where a shorter one is padded.
        """
        x, metric = self.attend(x, size)
        slot = None
        if r:
            ones = x.new_ones(x.shape[:2], dtype=torch.float32) if size is None else size
            if isinstance(r, RaggedLayer):
                slot = slots_each(metric, r)
                x, size = merge_each(slot, x, ones, r.longest)
            else:
                num_tokens = x.shape[1]
                chosen = merging.match(metric, r)
                x, size = merging.merge(chosen, x, ones)
                slot = merging.slots(chosen, num_tokens)
        return self.feed(x), size, slot

    def attend(self, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
        """The half of the block before the merge: tokens after attention, and the metric that they are matched by."""
        attended, metric = self.attention(self.norm1(x), size)
        return x + self.drop_path(self.scale1(attended)), metric

    def feed(self, x: Tensor) -> Tensor:
        """The half after the merge: tokens after the MLP."""
        return x + self.drop_path(self.scale2(self.mlp(self.norm2(x))))


def sincos(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Fixed 2-D positions (height * width, channels) float32, raster order; half the channels for each axis."""
    quarter = channels // 4
    frequency = torch.exp(-math.log(10000) * torch.arange(quarter, device=device) / quarter)
    y = torch.arange(height, device=device)[:, None] * frequency
    x = torch.arange(width, device=device)[:, None] * frequency
    rows = torch.cat([y.sin(), y.cos()], -1)[:, None].expand(-1, width, -1)
    columns = torch.cat([x.sin(), x.cos()], -1)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], -1).reshape(height * width, 4 * quarter)
