"""The Llama-style transformer: teacher-forced over whole sequences, or step by step against a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.generation.config import TransformerConfig
from mergevq.generation.kv_cache import KVCache, LayerCache
from mergevq.generation.packed_linear import Linear
from mergevq.generation.rotary import rotate
from mergevq.kernels import decoding_cpu


class Transformer(nn.Module):
    """`depth` blocks of causal attention and SwiGLU, and a last norm: (B, T, D) -> (B, T, D)."""

    def __init__(self, config: TransformerConfig, depth: int) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(TransformerBlock(config) for _ in range(depth))
        self.norm = RMSNorm(config.width)

    def forward(self, x: Tensor, rotation: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """Every token sees itself and those before it, or what `mask` (T, T) or (B, T, T) bool allows.

        `rotation`: factors (T, 2, head_dim) or (B, T, 2, head_dim) of the tokens' positions; None for none.
        """
        if mask is not None:
            mask = mask[..., None, :, :] if mask.ndim == 3 else mask
        for block in self.blocks:
            x = block(x, rotation, mask)
        return self.norm(x)

    def step(
        self,
        x: Tensor,
        rotation: Tensor | None,
        slots: Tensor,
        mask: Tensor | None = None,
        *,
        cache: KVCache,
        visible: int,
    ) -> Tensor:
        """Write T new tokens (B, T, D) into the cache's `slots`; they see its first `visible` slots, or those of them
        that `mask` (T, visible) or (B, T, visible) bool allows."""
        if mask is not None:
            mask = mask[:, None] if mask.ndim == 3 else mask
        for block, layer in zip(self.blocks, cache.at(slots, visible), strict=True):
            x = block(x, rotation, mask, layer)
        return self.norm(x)

    def cache(self, batch: int, slots: int, like: Tensor) -> KVCache:
        """An empty cache for `batch` sequences, of the type and device of `like`."""
        return KVCache(len(self.blocks), batch, self.config.heads, slots, self.config.head_dim, like=like)


class TransformerBlock(nn.Module):
    """RMSNorm, attention, RMSNorm, SwiGLU, each with a residual."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.norm2 = RMSNorm(config.width)
        self.attention = RotaryAttention(config)
        self.ffn = SwiGLU(config.width, config.ffn_width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotation: Tensor | None, mask: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), rotation, mask, cache))
        return x + self.dropout(self.ffn(self.norm2(x)))


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary positions; one matrix makes queries, keys and values."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.proj = Linear(config.width, config.width)
        self.norm_q, self.norm_k = (RMSNorm(config.head_dim) if config.qk_norm else None for _ in range(2))

    def forward(
        self, x: Tensor, rotation: Tensor | None, mask: Tensor | None, cache: LayerCache | None
    ) -> Tensor:
        # Views by hand: a step of decoding is short enough for einops to show.
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, heads, head_dim)
        if (
            cache is not None
            and self.norm_q is None
            and decoding_cpu.takes_cache(qkv, cache.keys, cache.values, rotation, mask)
        ):
            seen = mask[:, 0] if mask is not None and mask.ndim == 4 else mask
            return self.proj(decoding_cpu.attend(qkv, rotation, *cache, seen))
        queries_keys, v = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        if self.norm_q is not None and self.norm_k is not None:
            normed = torch.stack([self.norm_q(qkv[:, :, 0]), self.norm_k(qkv[:, :, 1])], 2)
            queries_keys = normed.to(v.dtype)
        if rotation is not None:
            # Before the transpose, because the channels of all heads lie in a row here.
            queries_keys = rotate(queries_keys, rotation[..., None, None, :, :])
        q, k = queries_keys[:, :, 0].transpose(1, 2), queries_keys[:, :, 1].transpose(1, 2)
        if cache is not None:
            k, v = cache.write(k, v)
        # A step of several tokens always brings its mask; a single token sees all visible slots.
        causal = cache is None and mask is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.proj(out.transpose(1, 2).flatten(2))


class RMSNorm(nn.Module):
    """x over the root of its mean square, times a learned factor per channel; statistics in at least float32."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if decoding_cpu.takes(x):
            return decoding_cpu.rms_norm(x, self.weight, self.eps)
        # By the vector's norm: one pass where PyTorch's rms_norm makes four on a CPU.
        y = x if x.dtype == torch.float64 else x.float()
        norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
        factor = (norm.square() / x.shape[-1] + self.eps).rsqrt()
        return (y * factor * self.weight).to(x.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); one matrix makes gate and up."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden)
        self.down = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate_up = self.gate_up(x)
        if decoding_cpu.takes(gate_up):
            return self.down(decoding_cpu.swiglu(gate_up))
        gate, up = gate_up.chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)
