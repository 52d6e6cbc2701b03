"""The stand-in teacher: a small classifier trained on the same labelled pictures that a tokenizer will see.

It takes the place of a published teacher where no weights can be had. It has seen the labels, so whoever
aligns a tokenizer with it measures distillation and not self-supervision; its export says so (`sees_labels`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.config import config, parse, to_tree
from mergevq.exports import load_export, read_description, write_export
from mergevq.layers import GroupNorm
from mergevq.quantize import average_over_ranks
from mergevq.training.protocol import Output, Training

_FORMAT = "mergevq stand-in classifier"


@config
class StandInConfig:
    """Size of a `StandInClassifier`: `width` channels at half the resolution, twice as many per halving."""

    classes: Annotated[int, pydantic.Field(ge=2)]
    width: Annotated[int, pydantic.Field(ge=8, multiple_of=8)] = 32
    num_stages: Annotated[int, pydantic.Field(ge=1, le=6)] = 3
    image_size: pydantic.PositiveInt = 32

    def __post_init__(self) -> None:
        if self.image_size < 2**self.num_stages:
            raise ValueError(
                f"image_size {self.image_size} is too small to be halved {self.num_stages} times"
            )

    @property
    def feature_dim(self) -> int:
        return self.width * 2 ** (self.num_stages - 1)


class StandInClassifier(nn.Module):
    """A small residual network with group norm: pictures (B, 3, H, W) in [-1, 1] to logits (B, classes)."""

    def __init__(self, config: StandInConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width * 2**i for i in range(config.num_stages)]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 4, stride=2, padding=1), _Residual(width))
            for before, width in zip([3, *widths], widths, strict=False)
        )
        self.head = nn.Linear(config.feature_dim, config.classes)

    def stage_features(self, images: Tensor) -> list[Tensor]:
        """The feature map (B, C, h, w) after each stage, finest first."""
        features = []
        x = images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def features(self, images: Tensor) -> Tensor:
        """The penultimate feature (B, feature_dim): the last stage's maxima over its positions.

        A class is told by a small part of the picture, which a mean would drown: maxima learn twice as fast.
        """
        return self.stage_features(images)[-1].amax(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.out = nn.Sequential(GroupNorm(8, width), nn.SiLU())
        nn.init.zeros_(self.body[-1].get_parameter("weight"))  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.body(x))


def classification_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy (float32 scalar) of logits (B, classes) with labels (B,) int64, -1 = no label.

    Scaled so that its gradients, averaged over the ranks with their batches as weights, are those of the mean over
    all labelled pictures of all ranks; zero where there is none.
    """
    total = F.cross_entropy(
        logits.float(), labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum"
    )
    labelled = average_over_ranks((labels >= 0).float().mean(), len(labels))
    return total / (len(labels) * labelled).clamp(min=1e-6)


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The fraction (float32 scalar) of labelled pictures that are classified right; 0 without labels."""
    labelled = labels >= 0
    return ((logits.argmax(-1) == labels) & labelled).sum().float() / labelled.sum().clamp(min=1)


def save_classifier(classifier: StandInClassifier, directory: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into `directory`, which is made where it is missing."""
    write_export(directory, classifier, _FORMAT, {"sees_labels": True, "config": to_tree(classifier.config)})


def load_classifier(directory: str | Path, *, key: str = "stand_in") -> StandInClassifier:
    """The classifier that `save_classifier` wrote, in eval mode on the CPU.

    `key` is the configuration key that named the directory. Raises `InputError` when it is not such an
    export.
    """
    description, where = read_description(directory, _FORMAT, what="a trained stand-in teacher", key=key)
    classifier = StandInClassifier(parse(StandInConfig, description["config"], where=where))
    return load_export(directory, classifier, key=key)


@config
class ClassifierTrainingConfig:
    """The loss of the stand-in teacher's training."""

    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0


class ClassifierPhase(nn.Module):
    """The classifier with its loss."""

    def __init__(self, classifier: StandInClassifier, config: ClassifierTrainingConfig) -> None:
        super().__init__()
        self.classifier = classifier
        self.config = config

    def forward(self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int, step: int) -> Output:
        del carry, keep, step
        logits = self.classifier(batch["image"])
        loss = classification_loss(logits, batch["label"], self.config.label_smoothing)
        return Output(
            total=loss, losses={"total": loss.detach(), "accuracy": accuracy(logits, batch["label"])}
        )


class ClassifierTraining(Training):
    """The training of a stand-in teacher, in one phase `classifier`; the kept count means nothing to it."""

    def __init__(self, classifier: StandInClassifier, config: ClassifierTrainingConfig | None = None) -> None:
        super().__init__()
        phase = ClassifierPhase(classifier, config or ClassifierTrainingConfig())
        self.phases = nn.ModuleDict({"classifier": phase})

    def model(self) -> StandInClassifier:
        phase = self.phases["classifier"]
        assert isinstance(phase, ClassifierPhase)
        return phase.classifier

    def export(self, model: nn.Module, directory: str | Path) -> None:
        assert isinstance(model, StandInClassifier)
        save_classifier(model, directory)
