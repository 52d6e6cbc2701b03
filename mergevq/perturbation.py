"""Perturbed codes and sources: what a decoder gets from a generator that errs.

The perturbation of pFID (Qiu et al. 2025, arXiv 2503.08354 and 2509.12474): a share of an image's tokens, each replaced by a
random one of its nearest codes. MergeVQ has a second thing to err in, the source: a share of an image's cells, each given to
the token that Source Recovery's own distribution draws for it.

Every draw is a function of (seed, image): neither the batch nor who computes it matters. It is the same at every share and
strength, so that what a larger one perturbs contains what a smaller one does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergevq import ragged
from mergevq.errors import InputError
from mergevq.merging import Source, sizes
from mergevq.nearest_codes import check_neighbours, draw_nearest
from mergevq.quantize import QuantizerConfig
from mergevq.rng import Stream, uniforms
from mergevq.tokenizer import Encoded, MergeVQ

RATES = (0.9, 0.8, 0.7, 0.6, 0.5)  # alpha: the shares of tokens over which pFID averages
# delta: the numbers of nearest codes over which it averages, by size of the vocabulary (figure 14 of 2509.12474).
STRENGTHS = {16384: (200, 280, 360), 8192: (100, 140, 180), 4096: (50, 70, 90), 1024: (10, 15, 20)}


class Perturbation(NamedTuple):
    """A cell of pFID's grid."""

    rate: float  # alpha, the share of an image's tokens, in [0, 1]
    neighbours: int  # delta, the number of nearest codes, itself among them


def strengths(vocabulary: int) -> tuple[int, ...]:
    """pFID's numbers of nearest codes for so many codes.

    As published for 1,024 to 16,384 codes; for any other number in proportion to it, from those of 16,384, and at least 2.
    """
    if vocabulary in STRENGTHS:
        return STRENGTHS[vocabulary]
    scaled = (max(2, math.floor(delta * vocabulary / 16384 + 0.5)) for delta in STRENGTHS[16384])
    return tuple(dict.fromkeys(min(delta, vocabulary) for delta in scaled))


def published_grid(vocabulary: int) -> tuple[Perturbation, ...]:
    """All combinations of pFID's shares and numbers of nearest codes, for so many codes."""
    return tuple(Perturbation(rate, delta) for delta in strengths(vocabulary) for rate in RATES)


def perturb_indices(
    quantizer: QuantizerConfig,
    indices: Tensor,
    image_ids: Sequence[int] | Tensor,
    perturbation: Perturbation,
    *,
    seed: int = 0,
) -> Tensor:
    """Indices (B, K) int64 with a share of each image's tokens replaced, each by a random one of its nearest codes.

    The share is of the image's own tokens, rounded to a whole number, a half upwards; -1, which pads images of fewer tokens,
    stays. `image_ids` (B,) name the images, at least 0. Raises `InputError` for a share beyond [0, 1], a number of
    nearest codes beyond the vocabulary, and for other shapes.
    """
    rate, neighbours = perturbation
    _check_rate(rate)
    check_neighbours(quantizer, neighbours)
    ids = _ids(image_ids, len(indices))
    width = 2 + quantizer.channels
    drawn = _drawn(seed, Stream.CODE_PERTURBATION, ids, indices.shape[1], width)
    tokens = indices.cpu()  # where float64 is on every machine, and few numbers are no work
    chosen = _share(drawn[..., 0], tokens != ragged.NO_TOKEN, rate)
    moved = draw_nearest(quantizer, tokens[chosen], drawn[chosen][:, 1:], neighbours)
    return tokens.masked_scatter(chosen, moved).to(indices.device)


def perturb_source(
    source: Source, logits: Tensor, image_ids: Sequence[int] | Tensor, rate: float, *, seed: int = 0
) -> Source:
    """The source with a share of each image's cells given to tokens as Source Recovery errs.

    Each of these cells goes to a draw of the softmax of its `logits` (B, N, K), those of `MergeVQ.recover`: where the
    recovery is sure, it stays right. The share is rounded to whole cells, a half upwards. `image_ids` (B,) name the
    images. A token may be left without a cell. Raises `InputError` for a share beyond [0, 1] and for other shapes.
    """
    _check_rate(rate)
    assignment = source.assignment
    if logits.ndim != 3 or logits.shape[:2] != assignment.shape or logits.shape[2] != source.size.shape[1]:
        raise InputError(
            f"logits {tuple(logits.shape)} are not of {tuple(assignment.shape)} cells and {source.size.shape[1]} tokens: "
            "give those of `recover`"
        )
    ids = _ids(image_ids, len(assignment))
    drawn = _drawn(seed, Stream.SOURCE_PERTURBATION, ids, assignment.shape[1], 2)
    chosen = _share(drawn[..., 0], torch.ones(assignment.shape, dtype=torch.bool), rate)
    cumulative = logits.detach().cpu().double().softmax(-1).cumsum(-1)
    # In shares of the last sum, so that no draw lies beyond it: never at a padded token.
    token = (cumulative <= drawn[..., 1:] * cumulative[..., -1:]).sum(-1)
    moved = torch.where(chosen, token, assignment.cpu()).to(assignment.device)
    return source._replace(assignment=moved, size=sizes(moved, source.size.shape[1]))


def decode_perturbed(
    tokenizer: MergeVQ,
    encoded: Encoded,
    image_ids: Sequence[int] | Tensor,
    perturbation: Perturbation,
    *,
    seed: int = 0,
    recovered: bool = False,
) -> Tensor:
    """Images (B, 3, H, W) of perturbed codes, with the true source, or with that which Source Recovery predicts from the
    perturbed codes, as for generated ones (`recovered`). Raises as `perturb_indices` and `MergeVQ.decode_indices`."""
    config = tokenizer.config.quantizer
    indices = perturb_indices(config, encoded.indices, image_ids, perturbation, seed=seed)
    return tokenizer.decode_indices(indices, None if recovered else encoded.source)


def decode_perturbed_source(
    tokenizer: MergeVQ, encoded: Encoded, image_ids: Sequence[int] | Tensor, rate: float, *, seed: int = 0
) -> Tensor:
    """Images (B, 3, H, W) of the true codes with a share of the cells recovered, by draws: see `perturb_source`.

    Raises `InputError` as it does, and without a Source Recovery.
    """
    logits = tokenizer.recover(encoded.codes.detach(), encoded.counts)
    return tokenizer.decode_codes(
        encoded.codes, perturb_source(encoded.source, logits, image_ids, rate, seed=seed)
    )


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise InputError(f"the share of perturbed tokens or cells is {rate}: it must be from 0 to 1")


def _ids(image_ids: Sequence[int] | Tensor, batch: int) -> list[int]:
    ids = [int(image) for image in (image_ids.tolist() if isinstance(image_ids, Tensor) else image_ids)]
    if len(ids) != batch or any(image < 0 for image in ids):
        raise InputError(
            f"image_ids must name each of {batch} images by a number of at least 0; got {len(ids)}, "
            f"the least {min(ids, default=None)}"
        )
    return ids


def _drawn(seed: int, stream: Stream, ids: list[int], items: int, width: int) -> Tensor:
    # (B, items, width) float64. Item by item, so that an image of fewer tokens has the same numbers for those it has.
    rows = [uniforms(items * width, seed, stream, image).reshape(items, width) for image in ids]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, items, width, dtype=torch.float64)


def _share(scores: Tensor, present: Tensor, rate: float) -> Tensor:
    # (B, T) bool: the items of the smallest scores, a share of those that are there.
    wanted = (present.sum(1).double() * rate + 0.5 + 1e-9).floor()  # 0.7 of 45 is 31.5, and less in floats
    order = scores.masked_fill(~present, torch.inf).argsort(dim=1, stable=True)
    return order.argsort(dim=1) < wanted[:, None]
