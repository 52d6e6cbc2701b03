"""Feature extractors of the Fréchet distance: configurations, the interface, and the names of metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from mergevq.config import config
from mergevq.metrics.inception import (
    Resize,
)
from mergevq.metrics.pixels import to_uint8
from mergevq.number_types import Count
from mergevq.paths import WeightsPath


@config
class RandomFeaturesConfig:
    """The fixed offline network `random_v1`: always available, comparable only with itself."""

    kind: Literal["random"] = "random"


@config
class TimmFeaturesConfig:
    """A timm model with weights from a file (for example DINOv2)."""

    kind: Literal["timm"] = "timm"
    name: str  # timm's name of the model
    weights: WeightsPath  # a safetensors or PyTorch file
    sha256: str | None = None  # what the file must hash to; none: whatever it hashes to is recorded
    image_size: Count = 224  # images are resized to this before the network


@config
class InceptionFeaturesConfig:
    """The Inception of FID, with weights from a file in pytorch-fid's and torch-fidelity's layout.

    `weights`: `pt_inception-2015-12-05-6726825d.pth`, which torch-fidelity calls
    `weights-inception-2015-12-05-6726825d.pth`; with any other weights the metrics are not called FID. `resize`: what
    the implementation of this name does to images; numbers of different ones do not compare.
    """

    kind: Literal["inception"] = "inception"
    weights: WeightsPath
    sha256: str | None = None  # what the file must hash to; none: whatever it hashes to is recorded
    resize: Resize = "torch_fidelity"


FeaturesConfig = Annotated[
    RandomFeaturesConfig | TimmFeaturesConfig | InceptionFeaturesConfig, Field(discriminator="kind")
]


class Extractor(nn.Module):
    """A frozen network of features: images (B, 3, H, W) in [-1, 1] to (B, dim) float32.

    Images are rounded to 8 bits first. `name` is part of the metrics' names; `identity` says what else numbers must
    share to be compared; `standard` is whether they may be called FID.
    """

    name: str
    identity: dict[str, Any]
    standard: bool = False

    def train(self, mode: bool = True) -> Extractor:
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        # Numbers must not depend on whether the caller runs under autocast.
        with torch.autocast(images.device.type, enabled=False), full_float32():
            return self.features(to_uint8(images)).float()

    def features(self, images: Tensor) -> Tensor:
        """Features (B, dim) of images (B, 3, H, W) uint8, float32."""
        raise NotImplementedError


ImageOrigin = Literal["reconstruction", "generation"]


def distance_name(network: Extractor, of: ImageOrigin, measure: Literal["fd", "sfd", "fd_inf"] = "fd") -> str:
    """The metric name of a Fréchet distance (of inner maps: `sfd`; extrapolated: `fd_inf`): `rfid`, `gsfid`, `rfid_inf` for
    the standard Inception's, `rfd_NAME`, `gsfd_NAME`, `rfd_inf_NAME` for those of any other features."""
    if network.standard:
        return of[0] + measure.replace("fd", "fid")
    return f"{of[0]}{measure}_{network.name}"


def perturbed_distance_name(network: Extractor) -> str:
    """The metric name of pFID, the Fréchet distance of reconstructions from perturbed codes: `pfid` for the standard
    Inception's features, `prfd_NAME` for any other."""
    return "pfid" if network.standard else f"prfd_{network.name}"


def score_name(network: Extractor, measure: str, of: ImageOrigin = "generation") -> str:
    """The metric name of a score (`inception_score`, `precision`, ...): of reconstructions it says so, and it has the
    features' name unless they are standard."""
    name = f"reconstruction_{measure}" if of == "reconstruction" else measure
    return name if network.standard else f"{name}_{network.name}"


def unit_range(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    # TF32, cuDNN's default for convolutions and often chosen for products, would make the distance depend on the GPU.
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # set in one of PyTorch's two ways, then in the other: what CUDA does is the word
        precision = "high" if torch.backends.cuda.matmul.allow_tf32 else "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
