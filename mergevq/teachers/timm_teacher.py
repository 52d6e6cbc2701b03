"""Teachers of timm's, DINOv2 by default."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mergevq.losses.alignment import TimmAlignmentConfig
from mergevq.pretrained import FrozenModule, Renormalise, timm_network


class TimmTeacher(FrozenModule):
    """The pooled feature (B, `dim`) of views (B, 3, t, t) in [-1, 1]; for DINOv2 the normalised [CLS].

    `positions` says how its position embeddings were resampled to the views; None where they were not.
    """

    network: Any  # timm's interface is more than nn.Module's

    def __init__(self, term: TimmAlignmentConfig, *, key: str = "alignment") -> None:
        super().__init__()
        self.network, self.positions = timm_network(term, key=key, image_size=term.teacher_size)
        self.dim: int = getattr(self.network, "head_hidden_size", self.network.num_features)
        cfg = self.network.pretrained_cfg
        self.renormalise = Renormalise(cfg["mean"], cfg["std"])
        self.freeze()

    def forward(self, views: Tensor) -> Tensor:
        tokens = self.network.forward_features(self.renormalise(views))
        return self.network.forward_head(tokens, pre_logits=True)
