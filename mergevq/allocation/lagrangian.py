"""The Lagrangian rule: of all counts the one with the lowest distortion plus price of its tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from mergevq.allocation.protocol import Menu


def lagrangian_counts(distortions: Tensor, menu: Menu, price: float) -> Tensor:
    """The count K that minimises D(K) + price * K for each image; of equals the lowest.

    `distortions` (B, M) float64, a column for each count of the ascending menu -> (B,) int64. D need not be monotone or convex in K,
    so all counts are compared. With one price for all images the choice minimises the mean distortion at the mean count that it
    has (Everett 1963; Shoham & Gersho 1988).
    """
    counts = torch.tensor(menu, device=distortions.device)
    costs = distortions + price * counts.double()
    return counts[costs.argmin(1)]  # the first of equals


def price_bracket(distortions: Tensor, menu: Menu) -> tuple[float, float]:
    """The prices at which images have the fewest and the most tokens: one above every gain of a token, and 0.

    A negative price would buy tokens that raise the distortion.
    """
    more = torch.tensor(menu, device=distortions.device)[1:] - menu[0]
    gains = (distortions[:, :1] - distortions[:, 1:]) / more.double()
    dearest = max(0.0, float(gains.max())) if gains.numel() else 0.0
    return 2 * dearest, 0.0
