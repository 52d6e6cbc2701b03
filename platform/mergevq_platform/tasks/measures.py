"""The networks that an evaluation measures with, opened before the first step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.image_size import ImageSize, height_width, size_text
from mergevq.metrics import extractor
from mergevq.metrics.lpips import LpipsDistance
from mergevq_platform.recipe import Recipe


def require_extractor(recipe: Recipe) -> None:
    """Open the extractor. Raises `InputError` for missing or unfit weights, and for images that are too small for it."""
    network, size = extractor(recipe.evaluation.extractor), recipe.data.views.image_size
    blank = torch.zeros(1, 3, *height_width(size))
    _require_takes(f"evaluation.extractor: {network.name}", size, lambda: network(blank))


def require_lpips(recipe: Recipe) -> None:
    """Open LPIPS, if the recipe measures it. Raises `InputError` as `require_extractor` does."""
    if recipe.evaluation.lpips is None:
        return
    distance, size = LpipsDistance(recipe.evaluation.lpips), recipe.data.views.image_size
    blank = torch.zeros(1, 3, *height_width(size))
    _require_takes(f"evaluation.lpips: {distance.name}", size, lambda: distance(blank, blank))


def _require_takes(what: str, size: ImageSize, forward: Callable[[], Tensor]) -> None:
    try:
        forward()
    except RuntimeError as error:  # PyTorch's word for a map that has become smaller than a kernel
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{what} does not take images of {size_text(size)} px ({reason}): leave it out, or choose another"
        ) from None
