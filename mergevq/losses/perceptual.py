"""Perceptual terms: distances between features of frozen networks."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.config import config
from mergevq.errors import InputError
from mergevq.fused import unit_channels, unit_distance, weighted_mean
from mergevq.image_size import ImageSize, height_width, size_text
from mergevq.paths import ExportPath, WeightsPath
from mergevq.pretrained import FrozenModule, Renormalise, TimmNetworkConfig, timm_network
from mergevq.teachers.stand_in import StandInClassifier, load_classifier
from mergevq.weights_file import load_strictly, read_weights


@config
class NoPerceptualConfig:
    """Pixels only."""

    kind: Literal["none"] = "none"


@config
class LpipsPerceptualConfig:
    """LPIPS on VGG16 (Zhang et al. 2018), version 0.1, from two files.

    `backbone`: VGG16 trained on ImageNet in torchvision's layout (`features.0.weight`, ...); `heads`: the
    linear heads in the layout of the `lpips` package (`lin0.model.1.weight`, ...).
    """

    backbone: WeightsPath
    heads: WeightsPath
    kind: Literal["lpips"] = "lpips"
    backbone_sha256: str | None = None
    heads_sha256: str | None = None
    weight: pydantic.NonNegativeFloat = 1.0


@config
class TimmPerceptualConfig(TimmNetworkConfig):
    """Squared distance of unit-normalised feature maps of a timm network, averaged over `layers`.

    `layers` are the indices of timm's `forward_intermediates`, all where it is left out; `size` resizes the
    images before the network, for those whose patches do not divide them.
    """

    kind: Literal["timm"] = "timm"
    layers: tuple[int, ...] | None = None
    size: ImageSize | None = None
    weight: pydantic.NonNegativeFloat = 1.0


@config
class StandInPerceptualConfig:
    """The same distance on every stage of a stand-in teacher, named by the directory of its export."""

    directory: ExportPath
    kind: Literal["stand_in"] = "stand_in"
    weight: pydantic.NonNegativeFloat = 1.0


PerceptualConfig = Annotated[
    NoPerceptualConfig | LpipsPerceptualConfig | TimmPerceptualConfig | StandInPerceptualConfig,
    pydantic.Field(discriminator="kind"),
]


def perceptual_distance(
    term: PerceptualConfig, *, image_size: ImageSize, key: str = "perceptual"
) -> PerceptualDistance | None:
    """The frozen module that computes the unweighted term, None without one.

    Raises `InputError` when its weights are missing or do not fit; `key` is the configuration key of `term`.
    """
    match term:
        case NoPerceptualConfig():
            return None
        case LpipsPerceptualConfig():
            return Lpips(term, key=key)
        case TimmPerceptualConfig():
            return TimmDistance(term, key=key, image_size=image_size)
        case StandInPerceptualConfig():
            return StandInDistance(term, key=key)
    raise AssertionError(term)


class PerceptualDistance(FrozenModule):
    """A float32 scalar for reconstructions and images (B, 3, H, W) in [-1, 1]."""

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """The compared feature maps (B, C, h, w)."""
        raise NotImplementedError

    def distances(self, differences: list[Tensor]) -> Tensor:
        """The scalar for squared differences (B, C, h, w) of unit-normalised maps: the mean over layers."""
        return torch.stack([difference.sum(1).mean() for difference in differences]).mean()

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        return self.distances(self.differences(reconstruction, images))

    def differences(self, reconstruction: Tensor, images: Tensor) -> list[Tensor]:
        """Squared differences (B, C, h, w) of unit-normalised feature maps, one per layer."""
        with torch.no_grad():
            wanted = [unit_channels(features) for features in self.feature_maps(images)]
        found = [unit_channels(features) for features in self.feature_maps(reconstruction)]
        return [(a - b).square() for a, b in zip(found, wanted, strict=True)]


_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
_VGG16_TAPS = (3, 8, 15, 22, 29)  # the last rectifier before each pooling, in torchvision's numbering
_VGG16_WIDTHS = (64, 128, 256, 512, 512)


class Lpips(PerceptualDistance):
    """LPIPS with VGG16: squared differences of unit-normalised features of five layers, channels weighted."""

    def __init__(self, term: LpipsPerceptualConfig, *, key: str = "perceptual") -> None:
        super().__init__()
        # LPIPS's own shift and scale of images in [-1, 1], which are ImageNet's mean and deviation rounded.
        mean, std = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
        self.renormalise = Renormalise(tuple((m + 1) / 2 for m in mean), tuple(s / 2 for s in std))
        self.features = _vgg16_features()
        state = read_weights(term.backbone, key=f"{key}.backbone", sha256=term.backbone_sha256)
        load_strictly(
            self.features,
            state,
            key=f"{key}.backbone",
            source=term.backbone,
            name="features.{}".format,
            among="features.",
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in _VGG16_WIDTHS)
        state = read_weights(term.heads, key=f"{key}.heads", sha256=term.heads_sha256)
        # Some exports list each head as "lins.0.model.1.weight", or once more so.
        load_strictly(
            self.heads,
            {re.sub(r"^lins\.", "lin", name): value for name, value in state.items()},
            key=f"{key}.heads",
            source=term.heads,
            name=lambda own: f"lin{own.partition('.')[0]}.model.1.weight",
            among="lin",
        )
        self.freeze()

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        x = self.renormalise(images)
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _VGG16_TAPS:
                maps.append(x)
        return maps

    def forward(self, reconstruction: Tensor, images: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.feature_maps(images)
        found = self.feature_maps(reconstruction)
        layers = zip(found, wanted, self.weights(), strict=True)
        return torch.stack([unit_distance(*layer) for layer in layers]).sum(0).mean()

    def distances(self, differences: list[Tensor]) -> Tensor:
        return self.per_image(differences).mean()

    def per_image(self, differences: list[Tensor]) -> Tensor:
        """The distance (B,) of each pair, for squared differences as `distances` takes them."""
        layers = zip(differences, self.weights(), strict=True)
        return torch.stack([weighted_mean(*layer) for layer in layers]).sum(0)

    def weights(self) -> list[Tensor]:
        """The weights (C,) of each layer's channels."""
        return [head.get_parameter("weight").flatten() for head in self.heads]


def _vgg16_features() -> nn.Sequential:
    layers: list[nn.Module] = []
    before = 3
    for entry in _VGG16:
        if isinstance(entry, int):
            layers += [nn.Conv2d(before, entry, 3, padding=1), nn.ReLU()]
            before = entry
        else:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class TimmDistance(PerceptualDistance):
    network: Any  # timm's interface is more than nn.Module's

    def __init__(self, term: TimmPerceptualConfig, *, key: str, image_size: ImageSize) -> None:
        super().__init__()
        self.size = term.size
        self.layers = None if term.layers is None else list(term.layers)
        self.network, self.positions = timm_network(term, key=key, image_size=term.size or image_size)
        if not hasattr(self.network, "forward_intermediates"):
            raise InputError(
                f"{key}.model: timm's '{term.model}' does not offer its inner features: name another model"
            )
        cfg = self.network.pretrained_cfg
        self.renormalise = Renormalise(cfg["mean"], cfg["std"])
        self.freeze()
        try:
            with torch.no_grad():
                self.feature_maps(torch.zeros(1, 3, *height_width(image_size)))
        except (AssertionError, RuntimeError, IndexError) as error:
            raise InputError(
                f"{key}: '{term.model}' refuses {size_text(image_size)} px images or its layers: {error}"
            ) from None

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        if self.size is not None and images.shape[-2:] != height_width(self.size):
            images = F.interpolate(images, height_width(self.size), mode="bilinear", antialias=True)
        return self.network.forward_intermediates(
            self.renormalise(images), indices=self.layers, output_fmt="NCHW", intermediates_only=True
        )


class StandInDistance(PerceptualDistance):
    network: StandInClassifier

    def __init__(self, term: StandInPerceptualConfig, *, key: str) -> None:
        super().__init__()
        self.network = load_classifier(term.directory, key=f"{key}.directory")
        self.freeze()

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        return self.network.stage_features(images)
