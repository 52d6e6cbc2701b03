"""Source Recovery: predict which kept token each grid cell went to, from the codes alone (section 3.2, equation 8)."""

from __future__ import annotations

import math
from functools import partial

import torch
from einops import rearrange
from torch import Tensor, nn

from mergevq.attention import attend
from mergevq.config import config
from mergevq.encoder import init_transformer
from mergevq.layers import Mlp
from mergevq.number_types import Count, Positive


@config
class RecoveryConfig:
    """Two transformer decoder layers over one learned query per grid cell (7.6M parameters as given, queries apart)."""

    width: Count = 512
    hidden: Count = 1536
    depth: Count = 2
    heads: Count = 8
    initial_std: Positive = 0.02  # of all weights; small widths want more
    rank_embedding: bool = True  # tell each kept token's rank in canonical order; known at generation too

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class SourceRecovery(nn.Module):
    """Codes (B, K, G) -> logits (B, N, K): cell n against kept token k."""

    def __init__(self, config: RecoveryConfig, code_channels: int, grid_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(code_channels, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.queries = nn.Parameter(torch.randn(1, grid_tokens, config.width) * 0.02)
        self.layers = nn.ModuleList(RecoveryLayer(config) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.width)
        self.apply(partial(init_transformer, std=config.initial_std))

    def forward(self, codes: Tensor) -> Tensor:
        tokens = self.embed(codes)
        if self.config.rank_embedding:
            tokens = tokens + ranks(codes.shape[1], self.config.width, codes.device).to(tokens.dtype)
        tokens = self.norm_in(tokens)
        position = self.queries.to(tokens.dtype)
        x = position.expand(len(codes), -1, -1)
        for layer in self.layers:
            x = layer(x, position, tokens)
        return self.head(self.norm_out(x)) @ self.head(tokens).transpose(1, 2) / math.sqrt(self.config.width)


class RecoveryLayer(nn.Module):
    """Pre-norm self-attention, cross-attention, MLP."""

    def __init__(self, config: RecoveryConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attention = MultiHeadAttention(width, config.heads)
        self.cross_attention = MultiHeadAttention(width, config.heads)
        self.mlp = Mlp(width, config.hidden)

    def forward(self, x: Tensor, position: Tensor, tokens: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.self_attention(y + position, y + position, y)
        x = x + self.cross_attention(self.norm2(x) + position, tokens, tokens)
        return x + self.mlp(self.norm3(x))


class MultiHeadAttention(nn.Module):
    """Multi-head attention of queries over keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (
            rearrange(project(x), "b t (h d) -> b h t d", h=self.heads)
            for project, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        return self.proj(rearrange(attend(q, k, v), "b h t d -> b t (h d)"))


def ranks(num_kept: int, width: int, device: torch.device) -> Tensor:
    """Sinusoidal codes (K, width) of the canonical rank as a share of K."""
    frequency = torch.exp(torch.linspace(0, math.log(512), width // 2, device=device))
    angle = (torch.arange(num_kept, device=device)[:, None] + 0.5) / num_kept * math.pi * frequency
    return torch.cat([angle.sin(), angle.cos()], -1)
