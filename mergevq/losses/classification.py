"""Classification terms: cross-entropy and accuracy over the labelled images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.quantize import average_over_ranks


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy (float32 scalar) of logits (B, classes) with labels (B,) int64, -1 = no label.

    Scaled so that its gradients, averaged over the ranks with their batches as weights, are those of the mean over
    all labelled images of all ranks; zero where there is none.
    """
    total = F.cross_entropy(
        logits.float(), labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum"
    )
    labelled = average_over_ranks((labels >= 0).float().mean(), len(labels))
    return total / (len(labels) * labelled).clamp(min=1e-6)


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The fraction (float32 scalar) of labelled images that are classified right; 0 without labels."""
    labelled = labels >= 0
    return ((logits.argmax(-1) == labels) & labelled).sum().float() / labelled.sum().clamp(min=1)
