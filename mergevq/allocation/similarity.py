"""The allocator `similarity`: an image merges as long as its matches are alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.allocation.grid_tokens import grid_tokens
from mergevq.allocation.protocol import Menu
from mergevq.encoder import Cells
from mergevq.tokenizer import MergeVQ


@dataclass(frozen=True)
class SimilarityAllocator:
    """The fewest tokens whose merges are all at least as similar as a threshold: the constant, a cosine.

    The schedule of merges depends on the count, so that "stop here" is no count that the layers reach: similarities are those of one
    pass to the lowest count of the menu, and K tokens stand for its N - K most similar merges.
    """

    menu: Menu

    @torch.no_grad()
    def scores(self, tokenizer: MergeVQ, images: Tensor, cells: Cells | None = None) -> Tensor:
        """See `Allocator.scores`: the least similarity among the merges for each count (B, M), ascending along the menu; without a
        merge infinity. Raises `InputError` as `encode`."""
        cells = grid_tokens(tokenizer, images, self.menu, cells)
        found = (
            tokenizer.encoder.match_similarities(cells, self.menu[0])
            .double()
            .sort(dim=1, descending=True)
            .values
        )
        merges = cells.rows * cells.columns - torch.tensor(self.menu, device=found.device)
        return F.pad(found, (1, 0), value=torch.inf)[:, merges]

    def counts(self, scores: Tensor, constant: float) -> Tensor:
        """See `Allocator.counts`: the lowest count at which no merge is below the threshold; the highest where all are."""
        counts = torch.tensor(self.menu, device=scores.device)
        return counts[(scores < constant).sum(1).clamp(max=len(self.menu) - 1)]

    def bracket(self, scores: Tensor, budget: float) -> tuple[float, float]:
        """See `Allocator.bracket`: a threshold below every similarity, and one above."""
        del budget
        finite = scores[scores.isfinite()]
        if not finite.numel():
            return 0.0, 0.0
        return float(finite.min()) - 1, float(finite.max()) + 1
