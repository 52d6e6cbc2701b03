"""2-D rotary positions: half of each head's channels turn with the row, half with the column."""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(coordinates: Tensor, head_dim: int, base: float = 10000.0) -> Tensor:
    """Coordinates (..., 2) float of row and column -> factors (..., 2, head_dim) for `rotate`.

    Channel i of a head is paired with channel i + head_dim / 2. The first half of the pairs turns by the row, the
    second by the column, each with the frequencies base^(-i / (head_dim / 4)).
    """
    quarter = head_dim // 4
    exponent = torch.arange(quarter, device=coordinates.device, dtype=coordinates.dtype) / quarter
    angle = (coordinates[..., None] * base**-exponent).flatten(-2)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)], -2)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn x (..., head_dim) by factors (..., 2, head_dim) of `rotations`; in the factors' precision, back in x's."""
    y = x.to(rotation.dtype)
    return torch.addcmul(y * rotation[..., 0, :], y.roll(y.shape[-1] // 2, -1), rotation[..., 1, :]).to(
        x.dtype
    )


def grid_coordinates(
    cells: int, columns: int | Tensor, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Row and column (cells, 2) of raster cells; (B, cells, 2) of grids with `columns` (B, 1) int64 each."""
    index = torch.arange(cells, device=device)
    return torch.stack([index // columns, index % columns], -1).to(dtype)
