"""The teacher of self-distillation: the tokenizer's own moving average."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mergevq.ema import move_towards
from mergevq.losses.alignment import Prototypes
from mergevq.tokenizer import MergeVQ


class SelfTeacher(nn.Module):
    """The moving average of a tokenizer's encoder and summary head, and of the prototypes.

    It takes no gradient. `follow` moves it, once per optimizer step.
    """

    def __init__(self, tokenizer: MergeVQ, prototypes: Prototypes) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(tokenizer)
        for unused in ("decoder", "recovery"):
            setattr(self.encoder, unused, None)
        self.prototypes = copy.deepcopy(prototypes)
        self.requires_grad_(False).eval()

    def forward(self, views: Tensor, keep: int) -> Tensor:
        """The logits (B, P), float32, of views (B, 3, t, t) in [-1, 1]."""
        with torch.no_grad():
            _, head = self.encoder.encode_summary(views, keep, check_values=False)
            return self.prototypes(head)

    def follow(self, tokenizer: MergeVQ, prototypes: Prototypes, momentum: float) -> None:
        """Keep `momentum` of itself and take the rest from the trained modules."""
        move_towards(self.encoder, tokenizer, 1 - momentum)
        move_towards(self.prototypes, prototypes, 1 - momentum)
