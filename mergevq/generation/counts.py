"""Kept counts of images to be generated: drawn from the histogram, by class, of the codes that a generator learnt from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.rng import sample_uniforms

COUNT = 2  # the stream of random numbers of a sample's count, beside those of its codes and of its order
BISECTIONS = 64


def draw_counts(
    histogram: Tensor,
    keeps: Sequence[int],
    labels: Tensor,
    *,
    sample_ids: Tensor,
    seed: int,
    budget: float | None = None,
) -> Tensor:
    """The kept counts (B,) int64, on the CPU, of samples with labels (B,), -1 for no class.

    `histogram` (C + 1, M) int64: images of each class, and of none, at each of the M counts `keeps`. A sample draws from the
    histogram of its class; without a class, or where its class has no image, from that of all images. The count of sample i is a
    function of (seed, sample_ids[i]) and its label alone. With a `budget` the histogram is tilted until its mean over all
    images is the budget, see `tilt`. Raises `InputError` for a histogram without images, and as `tilt`.
    """
    weights = histogram.cpu().double()
    overall = weights.sum(0)
    if not float(overall.sum()):
        raise InputError(
            "this generator holds no histogram of kept counts: give keep, or one that was trained on codes of a budget"
        )
    of_label = torch.where((weights.sum(1) > 0)[:, None], weights, overall)
    of_label[-1] = overall
    if budget is not None:
        of_label = of_label * tilt(overall, keeps, budget)
    cumulative = of_label.cumsum(1)[labels.cpu()]  # -1 is the last row, that of no class
    point = sample_uniforms(seed, sample_ids, 1, stream=COUNT) * cumulative[:, -1:]
    # Strictly below the total, so that rounding never reaches a count without images.
    point = point.minimum(torch.nextafter(cumulative[:, -1:], torch.zeros_like(point)))
    return torch.tensor(list(keeps))[(cumulative <= point).sum(1)]


def mean_count(histogram: Tensor, keeps: Sequence[int]) -> float:
    """The mean kept count of all images of a histogram (C + 1, M)."""
    overall = histogram.sum(0).double().cpu()
    return float((overall * torch.tensor(list(keeps)).double()).sum() / overall.sum())


def tilt(overall: Tensor, keeps: Sequence[int], budget: float) -> Tensor:
    """The factors exp(t K) (M,) float64 of the counts K, at most 1, by which a histogram (M,) gets the mean `budget`.

    Of all distributions with this mean over the same counts, the tilted one has the smallest Kullback-Leibler divergence from
    the histogram. Raises `InputError` for a budget that is not between the least and the largest count with images.
    """
    counts = torch.tensor(list(keeps), dtype=torch.float64)
    present = counts[overall > 0]
    low, high = float(present.min()), float(present.max())
    if budget == float((overall * counts).sum() / overall.sum()):
        return torch.ones_like(counts)
    if not low < budget < high:
        raise InputError(
            f"budget is {budget:g}: the images that this generator learnt from keep {low:g} to {high:g} tokens; give a mean between"
        )

    def factors(t: float) -> Tensor:
        exponent = t * counts
        return (exponent - exponent[overall > 0].max()).exp().clamp(max=1)

    def mean(t: float) -> float:
        shares = overall * factors(t)
        return float((shares * counts).sum() / shares.sum())

    least, most = -1.0, 1.0
    while mean(least) > budget:
        least *= 2
    while mean(most) < budget:
        most *= 2
    for _ in range(BISECTIONS):
        middle = (least + most) / 2
        least, most = (middle, most) if mean(middle) < budget else (least, middle)
    return factors((least + most) / 2)
