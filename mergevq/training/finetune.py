"""Full fine-tuning of the encoder for classification (SimMIM's recipe, appendix A.4).

The published setting is 100 epochs of AdamW (weight decay 0.05, batch 1,024, 20 epochs of warm-up, cosine) over strongly
augmented views; those belong to the recipe. Here are the model, the mixing of images, the loss and the rates of layers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor, nn

from mergevq.config import config, parse, to_tree
from mergevq.encoder import Encoder, EncoderConfig
from mergevq.errors import InputError
from mergevq.image_size import ImageSize
from mergevq.losses.classification import accuracy, classification_loss
from mergevq.number_types import Count, NonNegative, ProperFraction
from mergevq.serialization import load_export, read_export, write_model
from mergevq.tokenizer import MergeVQ
from mergevq.training.protocol import Output, ParameterGroup, Training, decayed_and_not

FORMAT = "mergevq fine-tuned classifier"
NOT_DECAYED = ("summary_token", "positions")  # as biases and norms


@config
class FineTunedConfig:
    """An encoder with a head for classes."""

    encoder: EncoderConfig
    grid: ImageSize  # cells at the trained resolution: of a square along one side, else [rows, columns]
    keep: Count  # tokens kept; appendix A.4 keeps all
    classes: Annotated[int, pydantic.Field(ge=2)]
    feature: Literal["mean", "cls"] = "mean"  # what the head reads


@config
class FineTuneConfig:
    """Feature, regularisation and mixing; by default SimMIM's values for ViT-B."""

    feature: Literal["mean", "cls"] = "mean"
    keep: Count | None = None  # none: all tokens, as appendix A.4
    drop_path: ProperFraction = 0.1
    layer_decay: Annotated[float, pydantic.Field(gt=0, le=1)] = (
        0.65  # of the rate, from each layer to the one below
    )
    mixup: NonNegative = 0.8  # Beta's parameter; 0: never
    cutmix: NonNegative = 1.0  # with both, each step tosses a coin
    label_smoothing: ProperFraction = 0.1


class FineTunedClassifier(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to logits (B, classes)."""

    def __init__(self, config: FineTunedConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, config.grid)
        self.norm = nn.LayerNorm(config.encoder.width)
        self.head = nn.Linear(config.encoder.width, config.classes)
        nn.init.trunc_normal_(self.head.weight, std=2e-5)  # starts undecided, as BEiT's and MAE's
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        encoded = self.encoder(images, self.config.keep)
        feature = encoded.summary if self.config.feature == "cls" else encoded.mean()
        return self.head(self.norm(feature))


def fine_tuned(tokenizer: MergeVQ, settings: FineTuneConfig, *, classes: int) -> FineTunedClassifier:
    """The tokenizer's encoder, its weights copied, under a new head."""
    model = FineTunedClassifier(
        FineTunedConfig(
            encoder=dataclasses.replace(tokenizer.config.encoder, drop_path=settings.drop_path),
            grid=tokenizer.config.grid,
            keep=settings.keep or tokenizer.grid_tokens,
            classes=classes,
            feature=settings.feature,
        )
    )
    model.encoder.load_state_dict(tokenizer.encoder.state_dict())
    return model


def mixed(images: Tensor, labels: Tensor, settings: FineTuneConfig) -> tuple[Tensor, Tensor, float]:
    """Images (B, 3, H, W) mixed with those of the batch in reverse, the partners' labels (B,), and the share in [0, 1]
    that each keeps of its own: by mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019), one draw for the batch.

    Draws from PyTorch's generator on the CPU, which a loop seeds by (seed, step, rank).
    """
    if not settings.mixup and not settings.cutmix:
        return images, labels, 1.0
    cut = settings.cutmix > 0 and (settings.mixup == 0 or float(torch.rand(())) < 0.5)
    alpha = settings.cutmix if cut else settings.mixup
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    partners = images.flip(0)
    if not cut:
        return share * images + (1 - share) * partners, labels.flip(0), share
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    rows, top = _span(height, side)
    columns, left = _span(width, side)
    images = images.clone()
    images[..., top : top + rows, left : left + columns] = partners[
        ..., top : top + rows, left : left + columns
    ]
    return images, labels.flip(0), 1 - rows * columns / (height * width)


def _span(length: int, fraction: float) -> tuple[int, int]:
    # How long, and where from, with the middle anywhere: what reaches over the border is cut off.
    span, middle = round(length * fraction), int(torch.randint(length, ()))
    start, stop = max(0, middle - span // 2), min(length, middle - span // 2 + span)
    return stop - start, start


class FineTunePhase(nn.Module):
    """The classifier with its loss."""

    def __init__(self, model: FineTunedClassifier, settings: FineTuneConfig) -> None:
        super().__init__()
        self.model, self.settings = model, settings

    def forward(
        self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int | None, step: int
    ) -> Output:
        del carry, keep, step
        images, partners, share = mixed(batch["image"], batch["label"], self.settings)
        logits, smoothing = self.model(images), self.settings.label_smoothing
        loss = share * classification_loss(logits, batch["label"], smoothing)
        if share < 1:
            loss = loss + (1 - share) * classification_loss(logits, partners, smoothing)
        right = accuracy(logits, batch["label"] if share >= 0.5 else partners)
        return Output(total=loss, losses={"total": loss.detach(), "accuracy": right})


class FineTuneTraining(Training):
    """Fine-tuning in one phase `classifier`; the loop's kept count is ignored.

    Raises `InputError` for fewer than two classes.
    """

    def __init__(self, tokenizer: MergeVQ, settings: FineTuneConfig | None = None, *, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"fine-tuning needs at least two classes, the data has {classes}")
        self.settings = settings or FineTuneConfig()
        model = fine_tuned(tokenizer, self.settings, classes=classes)
        self.phases = nn.ModuleDict({"classifier": FineTunePhase(model, self.settings)})

    def model(self) -> FineTunedClassifier:
        phase = self.phases["classifier"]
        assert isinstance(phase, FineTunePhase)
        return phase.model

    def parameter_groups(self, phase: str) -> list[ParameterGroup]:
        """Two per layer; every layer learns at `layer_decay` times the rate of the one above (Clark et al. 2020)."""
        del phase
        model = self.model()
        depth = len(model.encoder.blocks)
        layers: dict[int, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in model.named_parameters():
            layers.setdefault(layer_of(name, depth), []).append((name, parameter))
        groups = []
        for layer, named in sorted(layers.items()):
            factor = self.settings.layer_decay ** (depth + 1 - layer)
            special = [p for name, p in named if name.rsplit(".", 1)[-1] in NOT_DECAYED]
            others = decayed_and_not(p for name, p in named if name.rsplit(".", 1)[-1] not in NOT_DECAYED)
            others[1].parameters.extend(p for p in special if p.requires_grad)
            groups += [dataclasses.replace(group, rate_factor=factor) for group in others if group.parameters]
        return groups

    def export(self, model: nn.Module, directory: str | Path) -> None:
        assert isinstance(model, FineTunedClassifier)
        save_fine_tuned(model, directory)


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter of `FineTunedClassifier`: 0 for all before the blocks, 1 to depth, depth + 1 for the head."""
    parts = name.split(".")
    if parts[0] != "encoder":
        return depth + 1
    return int(parts[2]) + 1 if parts[1] == "blocks" else 0


def save_fine_tuned(model: FineTunedClassifier, directory: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into `directory`, which is made where it is missing."""
    write_model(model, FORMAT, {"config": to_tree(model.config)}, directory)


def load_fine_tuned(directory: str | Path, *, key: str = "classifier") -> FineTunedClassifier:
    """The classifier that `save_fine_tuned` wrote, in eval mode on the CPU.

    `key` is the configuration key that named the directory. Raises `InputError` when it is not such an export.
    """
    description, where = read_export(directory, FORMAT, what="a fine-tuned classifier", key=key)
    return load_export(
        directory, FineTunedClassifier(parse(FineTunedConfig, description["config"], where=where)), key=key
    )
