"""Reconstruction loss on pixels, and Source Recovery's loss on the predicted source."""

from __future__ import annotations

from typing import Literal, NamedTuple

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.config import config


@config
class ReconstructionConfig:
    """Distance between the pixels of reconstruction and image; `l1_l2` is the sum of both means."""

    kind: Literal["l1", "l2", "l1_l2"] = "l1"
    weight: pydantic.NonNegativeFloat = 1.0


def reconstruction_loss(term: ReconstructionConfig, reconstruction: Tensor, images: Tensor) -> Tensor:
    """The unweighted term, a float32 scalar, for images (B, 3, H, W) in [-1, 1]."""
    difference = reconstruction.float() - images.float()
    match term.kind:
        case "l1":
            return difference.abs().mean()
        case "l2":
            return difference.square().mean()
        case "l1_l2":
            return difference.abs().mean() + difference.square().mean()


@config
class RecoveryLossConfig:
    """Prediction of the source from the codes (Source Recovery), trained beside the tokenizer.

    `categorical` is the cross-entropy over the kept tokens at every grid cell; `binary` is equation 9 of the
    paper, averaged over all entries of the source matrix. `detach` keeps its gradient from the encoder.
    Weight 0 leaves the recovery untrained.
    """

    weight: pydantic.NonNegativeFloat = 0.5
    loss: Literal["categorical", "binary"] = "categorical"
    detach: bool = False


class RecoveryTerms(NamedTuple):
    """float32 scalars: the unweighted loss, the fraction of cells predicted right, and of the largest
    cluster.
    """

    loss: Tensor
    accuracy: Tensor
    baseline: Tensor


def recovery_loss(term: RecoveryLossConfig, logits: Tensor, assignment: Tensor) -> RecoveryTerms:
    """The loss of predicted logits (B, N, K) against the true assignment (B, N) int64 in [0, K).

    `baseline` is what guessing the most frequent kept token of each image for all its cells would score.
    """
    logits = logits.float()
    num_kept = logits.shape[-1]
    match term.loss:
        case "categorical":
            loss = F.cross_entropy(logits.flatten(0, 1), assignment.flatten())
        case "binary":
            loss = F.binary_cross_entropy_with_logits(logits, F.one_hot(assignment, num_kept).float())
    with torch.no_grad():
        accuracy = (logits.argmax(-1) == assignment).float().mean()
        sizes = torch.zeros(logits.shape[0], num_kept, device=logits.device)
        sizes.scatter_add_(1, assignment, torch.ones_like(assignment, dtype=sizes.dtype))
        baseline = sizes.amax(-1).mean() / assignment.shape[1]
    return RecoveryTerms(loss, accuracy, baseline)
