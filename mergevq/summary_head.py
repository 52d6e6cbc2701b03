"""The head on the summary token, whose output is aligned with a teacher."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mergevq.config import config
from mergevq.number_types import Count


@config
class SummaryHeadConfig:
    """The MLP on the summary token whose output is aligned with a teacher: two layers with LayerNorm (G) or three (G+R, R)."""

    layers: Literal[2, 3] = 3
    out: Count = 768


class SummaryHead(nn.Module):
    """MLP on the summary token (section 3.2, global alignment)."""

    def __init__(self, config: SummaryHeadConfig, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        middle = [nn.LayerNorm(hidden)] if config.layers == 2 else [nn.Linear(hidden, hidden), nn.GELU()]
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), *middle, nn.Linear(hidden, config.out)
        )

    def forward(self, summary: Tensor) -> Tensor:
        return self.layers(summary)
