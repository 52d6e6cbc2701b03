"""The allocator `learned`: a small head on the grid tokens predicts what every count would distort."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mergevq.allocation.config import LearnedAllocatorConfig
from mergevq.allocation.grid_tokens import grid_tokens
from mergevq.allocation.lagrangian import lagrangian_counts, price_bracket
from mergevq.allocation.protocol import Menu
from mergevq.encoder import Cells
from mergevq.errors import InputError
from mergevq.tokenizer import MergeVQ

MOST_PARAMETERS = 0.02  # of the encoder's
TYPICAL = 6.0  # log D of an image at 22 dB, from where the head starts
SMALLEST = 1e-3  # squared levels, whose logarithm stands for that of an exact reconstruction, which has none


class LearnedAllocator(nn.Module):
    """log D(K) for every count of the menu, from grid tokens pooled over the grid; then the Lagrangian rule.

    The price is the constant, in squared levels a token as for the oracle.
    """

    def __init__(
        self, config: LearnedAllocatorConfig, menu: Menu, width: int, tokenizer_sha256: str | None = None
    ) -> None:
        super().__init__()
        self.config, self._menu, self.width = config, menu, width
        self.tokenizer_sha256 = tokenizer_sha256  # of the weights of the tokenizer that it belongs to
        features, hidden = 3 * width, config.hidden
        output = nn.Linear(hidden, len(menu))
        nn.init.constant_(output.bias, TYPICAL)
        self.head = nn.Sequential(
            nn.LayerNorm(features, elementwise_affine=False), nn.Linear(features, hidden), nn.GELU(), output
        )

    @property
    def menu(self) -> Menu:
        """See `Allocator.menu`."""
        return self._menu

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, 3D) -> log D (B, M), D in squared levels of [0, 255]."""
        return self.head(features)

    @torch.no_grad()
    def features(self, cells: Cells) -> Tensor:
        """The features (B, 3D) of images. Raises `InputError` for grid tokens of another width."""
        if (width := cells.tokens.shape[2]) != self.width:
            raise InputError(
                f"the allocator reads grid tokens of width {self.width}, this tokenizer's have {width}: give the tokenizer that it "
                "was trained with"
            )
        return pooled(cells)

    @torch.no_grad()
    def scores(self, tokenizer: MergeVQ, images: Tensor, cells: Cells | None = None) -> Tensor:
        """See `Allocator.scores`: the predicted D (B, M)."""
        cells = grid_tokens(tokenizer, images, self.menu, cells)
        features = self.features(cells).to(next(self.parameters()).dtype)
        return self(features).double().exp()

    def counts(self, scores: Tensor, constant: float) -> Tensor:
        """See `Allocator.counts` and `lagrangian_counts`."""
        return lagrangian_counts(scores, self.menu, constant)

    def bracket(self, scores: Tensor, budget: float) -> tuple[float, float]:
        """See `Allocator.bracket` and `price_bracket`."""
        del budget
        return price_bracket(scores, self.menu)

    def require_small(self, tokenizer: MergeVQ) -> None:
        """Raise `InputError` where the head has more than 2 % of the parameters of the tokenizer's encoder."""
        own = sum(parameter.numel() for parameter in self.parameters())
        encoder = sum(parameter.numel() for parameter in tokenizer.encoder.parameters())
        if own > MOST_PARAMETERS * encoder:
            raise InputError(
                f"hidden is {self.config.hidden}: the head has {own:,} parameters, more than {MOST_PARAMETERS:.0%} of the encoder's "
                f"{encoder:,}: lower it"
            )


def pooled(cells: Cells) -> Tensor:
    """Mean, deviation and maximum over the grid of grid tokens: (B, 3D)."""
    tokens = cells.tokens[:, 1:]
    return torch.cat([tokens.mean(1), tokens.std(1, correction=0), tokens.amax(1)], dim=1)


def logarithms(distortions: Tensor) -> Tensor:
    """log D float32 of measured distortions (B, M), what the head predicts."""
    return distortions.clamp(min=SMALLEST).log().float()
