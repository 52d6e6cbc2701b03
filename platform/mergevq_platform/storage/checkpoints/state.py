"""The state of a training, as resume.pt holds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from mergevq.ema import Ema
from mergevq.training.protocol import Training


@dataclass
class TrainingState:
    """All that changes while training; every other thing is a function of the recipe and the step."""

    training: Training
    ema: Ema
    optimizers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler | None = None
    step: int = 0  # optimizer steps done
    bad_images: list[int] = field(default_factory=list)  # rows that could not be decoded, of all ranks

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads with `weights_only=True`."""
        return {
            "step": self.step,
            "training": self.training.resume_state(),
            "ema": self.ema.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "bad_pictures": self.bad_images,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Strict: raises if anything is missing or unknown. Settings of optimizers are those of the recipe at hand, not the stored ones."""
        self.step = state["step"]
        self.training.load_resume_state(state["training"])
        self.ema.load_state_dict(state["ema"])
        assert state["optimizers"].keys() == self.optimizers.keys()
        for name, optimizer in self.optimizers.items():
            own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(state["optimizers"][name])
            for group, settings in zip(optimizer.param_groups, own, strict=True):
                group.update(settings)  # a resume or a fork may change weight decay and betas
        self.bad_images = state.get("bad_pictures", [])  # older checkpoints hold none
        if self.scaler and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
