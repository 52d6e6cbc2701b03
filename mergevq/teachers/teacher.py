"""Teachers of the summary token: networks of timm's, the stand-in, the tokenizer's own moving average."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.ema import move_towards
from mergevq.losses.alignment import Prototypes, StandInAlignment, TimmAlignment
from mergevq.pretrained import Frozen, Renormalise, timm_network
from mergevq.tokenizer import MergeVQ
from mergevq.training.classifier import load_classifier


class TimmTeacher(Frozen):
    """The pooled feature (B, `dim`) of views (B, 3, t, t) in [-1, 1]; for DINOv2 the normalised [CLS].

    `positions` says how its position embeddings were resampled to the views; None where they were not.
    """

    network: Any  # timm's interface is more than nn.Module's

    def __init__(self, term: TimmAlignment, *, key: str = "alignment") -> None:
        super().__init__()
        self.network, self.positions = timm_network(term, key=key, image_size=term.teacher_size)
        self.dim: int = getattr(self.network, "head_hidden_size", self.network.num_features)
        cfg = self.network.pretrained_cfg
        self.renormalise = Renormalise(cfg["mean"], cfg["std"])
        self.freeze()

    def forward(self, views: Tensor) -> Tensor:
        tokens = self.network.forward_features(self.renormalise(views))
        return self.network.forward_head(tokens, pre_logits=True)


class StandInTeacher(Frozen):
    """A stand-in's layer-normalised penultimate feature (B, `dim`) of views (B, 3, t, t) in [-1, 1]."""

    def __init__(self, term: StandInAlignment, *, key: str = "alignment") -> None:
        super().__init__()
        self.network = load_classifier(term.directory, key=f"{key}.directory")
        self.dim = self.network.config.feature_dim
        self.freeze()

    def forward(self, views: Tensor) -> Tensor:
        return F.layer_norm(self.network.features(views).float(), (self.dim,))


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
