"""The stand-in teacher: a small classifier trained on the labelled images that a tokenizer will see.

It replaces a published teacher where no weights can be had. It has seen the labels: alignment with it measures
distillation and not self-supervision, and its export says so (`sees_labels`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.config import config, parse, to_tree
from mergevq.image_size import ImageSize, height_width, size_text
from mergevq.layers import GroupNorm
from mergevq.losses.alignment import StandInAlignmentConfig
from mergevq.pretrained import FrozenModule
from mergevq.serialization import load_export, read_export, write_model

FORMAT = "mergevq stand-in classifier"


@config
class StandInConfig:
    """Size of a `StandInClassifier`: `width` channels at half the resolution, twice as many per halving."""

    classes: Annotated[int, pydantic.Field(ge=2)]
    width: Annotated[int, pydantic.Field(ge=8, multiple_of=8)] = 32
    num_stages: Annotated[int, pydantic.Field(ge=1, le=6)] = 3
    image_size: ImageSize = 32

    def __post_init__(self) -> None:
        if min(height_width(self.image_size)) < 2**self.num_stages:
            raise ValueError(
                f"image_size {size_text(self.image_size)} is too small to be halved {self.num_stages} times"
            )

    @property
    def feature_dim(self) -> int:
        return self.width * 2 ** (self.num_stages - 1)


class StandInClassifier(nn.Module):
    """A small residual network with group norm: images (B, 3, H, W) in [-1, 1] to logits (B, classes)."""

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

        A class is told by a small part of the image, which a mean would drown: maxima learn twice as fast.
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


def save_classifier(classifier: StandInClassifier, directory: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into `directory`, which is made where it is missing."""
    description = {"sees_labels": True, "config": to_tree(classifier.config)}
    write_model(classifier, FORMAT, description, directory)


def load_classifier(directory: str | Path, *, key: str = "stand_in") -> StandInClassifier:
    """The classifier that `save_classifier` wrote, in eval mode on the CPU.

    `key` is the configuration key that named the directory. Raises `InputError` when it is not such an
    export.
    """
    description, where = read_export(directory, FORMAT, what="a trained stand-in teacher", key=key)
    classifier = StandInClassifier(parse(StandInConfig, description["config"], where=where))
    return load_export(directory, classifier, key=key)


class StandInTeacher(FrozenModule):
    """A stand-in's layer-normalised penultimate feature (B, `dim`) of views (B, 3, t, t) in [-1, 1]."""

    def __init__(self, term: StandInAlignmentConfig, *, key: str = "alignment") -> None:
        super().__init__()
        self.network = load_classifier(term.directory, key=f"{key}.directory")
        self.dim = self.network.config.feature_dim
        self.freeze()

    def forward(self, views: Tensor) -> Tensor:
        return F.layer_norm(self.network.features(views).float(), (self.dim,))
