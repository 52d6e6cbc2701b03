"""Token merging as pure functions: match, merge, unmerge, and the source: which cell went where.

Bipartite soft matching (ToMe; MergeVQ section 3.2, appendix A.1 "Token Merge Module"), with the source matrix kept as
an index map: N integers instead of K x N floats, composed by gather.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.errors import InputError
from mergevq.image_size import square_grid


class Source(NamedTuple):
    """The source: the kept token of each grid cell. The paper's source matrix S as an index map.

    `assignment` (B, N) int64, values in [0, K): the slot of each raster cell. `size` (B, K) float32: cells per slot.
    `grid`: rows and columns of the N cells; None is a square.
    """

    assignment: Tensor
    size: Tensor
    grid: tuple[int, int] | None = None

    @property
    def rows(self) -> int:
        """Rows of the grid. Raises `InputError` where N cells are no square and `grid` is None, or it has other than N cells."""
        return self._rows_columns()[0]

    @property
    def columns(self) -> int:
        """Columns of the grid; errors as for `rows`."""
        return self._rows_columns()[1]

    def _rows_columns(self) -> tuple[int, int]:
        cells = self.assignment.shape[-1]
        found = self.grid or square_grid(cells)
        if found is None:
            raise InputError(
                f"the source has {cells} cells, which are no square: say its rows and columns, "
                "Source(assignment, size, grid=(rows, columns))"
            )
        if found[0] * found[1] != cells:
            raise InputError(
                f"the source has {cells} cells, but its grid is {found[0]} x {found[1]}: give the rows and columns of its image"
            )
        return found

    def matrix(self) -> Tensor:
        """S as (B, K, N) float32: 1 where cell n is in slot k; every column sums to 1."""
        return F.one_hot(self.assignment, self.size.shape[1]).transpose(1, 2).float()


def every_cell(indices: Tensor, grid: tuple[int, int]) -> Source:
    """The source of codes (B, N) int64 that are given for every cell of `grid` (rows, columns), in raster order."""
    cells = torch.arange(indices.shape[1], device=indices.device).expand_as(indices)
    return Source(cells, torch.ones_like(cells, dtype=torch.float32), grid)


class Match(NamedTuple):
    """One layer's decision, T tokens to T - r.

    `kept` (B, A - r) and `merged` (B, r): positions among the A even tokens; `destination` (B, r): for each merged token the position
    among the odd tokens that takes it up. All int64. `similarity` (B, r) float32: the cosine of each merged pair, descending.
    """

    kept: Tensor
    merged: Tensor
    destination: Tensor
    similarity: Tensor


@torch.no_grad()
def match(metric: Tensor, r: int, *, protect_first: bool = True) -> Match:
    """Choose the `r` most similar (even, odd) pairs of T tokens.

    `metric` (B, T, C), compared by cosine similarity in float32; 0 <= r <= (T - 1) // 2 with a protected first token
    ([CLS] is never merged and never a destination), else r <= T // 2. Each even token proposes its best odd token;
    the r best proposals are taken, several may share a destination.
    """
    metric = F.normalize(metric.float(), dim=-1)
    even, odd = metric[:, ::2], metric[:, 1::2]
    best, partner = (even @ odd.transpose(1, 2)).max(dim=-1)
    if protect_first:
        best[:, 0] = -torch.inf
    similarity, merged = best.topk(r, dim=-1)
    taken = torch.zeros_like(best, dtype=torch.bool).scatter_(1, merged, True)
    # A stable sort of the flags lists the kept even tokens in their order, at a size known without a look at the data.
    kept = taken.to(torch.uint8).argsort(dim=-1, stable=True)[:, : best.shape[1] - r]
    return Match(kept, merged, partner.gather(1, merged), similarity)


def merge(match: Match, tokens: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, D), sizes (B, T) -> size-weighted means (B, T - r, D) and summed sizes (B, T - r).

    The order is [kept even tokens ascending, all odd tokens].
    """
    weighted = torch.cat(
        [tokens * size[..., None].to(tokens.dtype), size[..., None].to(tokens.dtype)], dim=-1
    )
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    width = weighted.shape[-1]
    given = even.gather(1, match.merged[..., None].expand(-1, -1, width))
    taken = odd.scatter_add(1, match.destination[..., None].expand(-1, -1, width), given)
    out = torch.cat([even.gather(1, match.kept[..., None].expand(-1, -1, width)), taken], dim=1)
    return out[..., :-1] / out[..., -1:], out[..., -1]


def slots(match: Match, num_tokens: int) -> Tensor:
    """(B, T) int64: for each of T = `num_tokens` tokens its position after the merge."""
    batch, num_kept = match.kept.shape
    num_even, num_odd = (num_tokens + 1) // 2, num_tokens // 2
    device = match.kept.device
    out = torch.empty(batch, num_tokens, dtype=torch.int64, device=device)
    even = torch.empty(batch, num_even, dtype=torch.int64, device=device)
    even.scatter_(1, match.kept, torch.arange(num_kept, device=device).expand(batch, -1))
    even.scatter_(1, match.merged, match.destination + num_kept)
    out[:, ::2] = even
    out[:, 1::2] = torch.arange(num_kept, num_kept + num_odd, device=device)
    return out


def unmerge(tokens: Tensor, assignment: Tensor) -> Tensor:
    """Copy kept tokens (B, K, D) back to their cells (B, N, D): Z_L = S^T Z_K (equation 11), by one gather."""
    return tokens.gather(1, assignment[..., None].expand(-1, -1, tokens.shape[-1]))


def mean_over_cells(tokens: Tensor, size: Tensor) -> Tensor:
    """Kept tokens (B, K, D) of sizes (B, K) averaged over the grid cells that they stand for: (B, D)."""
    share = size / size.sum(1, keepdim=True)
    return torch.einsum("bk,bkd->bd", share.to(tokens.dtype), tokens)


def canonical(
    tokens: Tensor, assignment: Tensor, grid: tuple[int, int] | None = None
) -> tuple[Tensor, Source]:
    """Reorder kept tokens (B, K, D) by the first raster cell of each; returns them with their `Source` on `grid`."""
    batch, num_cells = assignment.shape
    num_kept = tokens.shape[1]
    cells = torch.arange(num_cells, device=tokens.device).expand(batch, -1)
    first = torch.full((batch, num_kept), num_cells, dtype=torch.int64, device=tokens.device)
    order = first.scatter_reduce(1, assignment, cells, "amin").argsort(dim=1)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(num_kept, device=tokens.device).expand(batch, -1)
    )
    ranked = rank.gather(1, assignment)
    return unmerge(tokens, order), Source(ranked, sizes(ranked, num_kept), grid)


def sizes(assignment: Tensor, num_kept: int) -> Tensor:
    """(B, K) float32: how many cells each slot has; 0 is possible for a predicted assignment."""
    ones = torch.ones_like(assignment, dtype=torch.float32)
    return ones.new_zeros(assignment.shape[0], num_kept).scatter_add_(1, assignment, ones)
