"""The loss terms of a tokenizer's training and their weights; the published combinations."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pydantic

from mergevq.config import Tree, config
from mergevq.errors import InputError
from mergevq.image_size import ImageSize
from mergevq.losses.adversarial import AdversarialConfig, PatchAdversarialConfig
from mergevq.losses.alignment import AlignmentConfig, NoAlignmentConfig, ViewSizes
from mergevq.losses.perceptual import NoPerceptualConfig, PerceptualConfig
from mergevq.losses.reconstruction import ReconstructionConfig, RecoveryLossConfig


@config
class AnnealingConfig:
    """A linear schedule of a weight's factor, from `start_factor` to 1 over `steps` optimizer steps."""

    start_factor: pydantic.NonNegativeFloat = 1.0
    steps: pydantic.NonNegativeInt = 0

    def factor(self, step: int) -> float:
        """The factor at optimizer step `step`."""
        if step >= self.steps:
            return 1.0
        return self.start_factor + (1 - self.start_factor) * step / self.steps


@config
class EntropyConfig:
    """weight * (sample_weight * mean entropy of a token's code - codebook_weight * that of the mean code).

    `annealing` changes `weight` at the start: a start factor above 1 spreads the codes early.
    """

    weight: pydantic.NonNegativeFloat = 0.1
    sample_weight: pydantic.NonNegativeFloat = 1.0
    codebook_weight: pydantic.NonNegativeFloat = 1.0
    annealing: AnnealingConfig = AnnealingConfig()


@config
class TokenizerTrainingConfig:
    """The loss terms of a tokenizer's training; by default the released ones that need no weights of others.

    `loss_preset` gives the trees of the published combinations.
    """

    reconstruction: ReconstructionConfig = ReconstructionConfig()
    perceptual: PerceptualConfig = NoPerceptualConfig()
    adversarial: AdversarialConfig = PatchAdversarialConfig()
    commitment_weight: pydantic.NonNegativeFloat = 0.25
    entropy: EntropyConfig = EntropyConfig()
    recovery: RecoveryLossConfig = RecoveryLossConfig()
    alignment: AlignmentConfig = NoAlignmentConfig()

    def after(self, steps: int) -> TokenizerTrainingConfig:
        """The same terms for a training that goes on after `steps` optimizer steps: a late start or an annealing is that much nearer."""
        annealing = self.entropy.annealing
        rest = AnnealingConfig(start_factor=annealing.factor(steps), steps=max(0, annealing.steps - steps))
        adversarial = self.adversarial
        if isinstance(adversarial, PatchAdversarialConfig):
            adversarial = replace(adversarial, start_step=max(0, adversarial.start_step - steps))
        return replace(self, adversarial=adversarial, entropy=replace(self.entropy, annealing=rest))

    def views_needed(self, image_size: ImageSize) -> ViewSizes:
        """The sizes of both further views for images of `image_size`, None where unused."""
        return self.alignment.views_needed(image_size)


def loss_preset(name: Literal["release", "paper"], variant: Literal["g", "gr", "r"] = "gr") -> Tree:
    """The tree of a published combination of losses, which a recipe's own values override.

    `release`: as in the official code (L1, LPIPS 1.0, fixed adversarial weight 0.1); `paper`: as in its Table
    A1 (L2, LPIPS 0.7, adaptive 0.8). `variant` decides the weights of recovery and alignment. The files of
    LPIPS (`perceptual.backbone`, `perceptual.heads`) and of the teacher (`alignment.weights`, or
    `alignment.hub: true`) are for the recipe to name. Raises `InputError` for another name.
    """
    presets: dict[str, Tree] = {
        "release": {
            "reconstruction": {"kind": "l1", "weight": 1.0},
            "perceptual": {"kind": "lpips", "weight": 1.0},
            "adversarial": {"kind": "patch", "weight": 0.1, "adaptive": False, "lecam_weight": 0.01},
        },
        "paper": {
            "reconstruction": {"kind": "l2", "weight": 1.0},
            "perceptual": {"kind": "lpips", "weight": 0.7},
            "adversarial": {"kind": "patch", "weight": 0.8, "adaptive": True, "lecam_weight": 0.01},
        },
    }
    by_variant = {"g": (0.5, 0.1), "gr": (0.5, 1.0), "r": (1.0, 1.0)}
    if name not in presets or variant not in by_variant:
        raise InputError(
            f"there is no loss preset '{name}' for '{variant}': release or paper, for g, gr or r"
        )
    recovery, alignment = by_variant[variant]
    return presets[name] | {
        "commitment_weight": 0.25,
        "entropy": {"weight": 0.1},
        "recovery": {"weight": recovery},
        "alignment": {"kind": "timm", "model": "vit_base_patch14_dinov2", "weight": alignment, "loss": "kl"},
    }
