"""Networks whose features a Fréchet distance compares, each with the identity that its numbers are valid under."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from mergevq.config import config, parse
from mergevq.errors import InputError
from mergevq.file_kinds import is_torchscript
from mergevq.metrics.inception import (
    RESIZES,
    STANDARD_SHA256,
    Inception,
    InceptionOutputs,
    Resize,
    resized,
)
from mergevq.metrics.pixels import to_uint8
from mergevq.paths import WeightsPath
from mergevq.weights_file import file_sha256, load_strictly, read_weights

RANDOM_V1_SHA256 = "94ed8e012e5ec5807d75e78813b6ed2492f1fdcb02781b51815e3eba1b08270e"
RANDOM_V1_CHANNELS = (24, 32, 44)


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
    image_size: Annotated[int, Field(ge=1)] = 224  # images are resized to this before the network


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
        with torch.autocast(images.device.type, enabled=False), _full_float32():
            return self.features(to_uint8(images)).float()

    def features(self, images: Tensor) -> Tensor:
        """Features (B, dim) of images (B, 3, H, W) uint8, float32."""
        raise NotImplementedError


def extractor(
    settings: RandomFeaturesConfig | TimmFeaturesConfig | InceptionFeaturesConfig,
    *,
    key: str = "evaluation.extractor",
) -> Extractor:
    """The extractor that a configuration names, on the CPU. Raises `InputError` for weights that cannot be had.

    `key` is the configuration key of `settings`.
    """
    match settings:
        case RandomFeaturesConfig():
            return RandomExtractor()
        case TimmFeaturesConfig():
            return TimmExtractor(settings, key=key)
        case InceptionFeaturesConfig():
            return InceptionExtractor(settings, key=key)


Measured = Literal["reconstruction", "generation"]


def distance_name(network: Extractor, of: Measured, measure: Literal["fd", "sfd", "fd_inf"] = "fd") -> str:
    """What a Fréchet distance (of inner maps: `sfd`; extrapolated: `fd_inf`) is called: `rfid`, `gsfid`, `rfid_inf` for
    the standard Inception's, `rfd_NAME`, `gsfd_NAME`, `rfd_inf_NAME` for those of any other features."""
    if network.standard:
        return of[0] + measure.replace("fd", "fid")
    return f"{of[0]}{measure}_{network.name}"


def score_name(network: Extractor, measure: str, of: Measured = "generation") -> str:
    """What a score (`inception_score`, `precision`, ...) is called: of reconstructions it says so, and it has the
    features' name unless they are standard."""
    name = f"reconstruction_{measure}" if of == "reconstruction" else measure
    return name if network.standard else f"{name}_{network.name}"


class RandomExtractor(Extractor):
    """`random_v1`: three random convolutions with ReLU; the channels' means and deviations after each are the features.

    Random features order blur, noise and compression by strength, each among themselves; they do not rank different
    faults, or models, as people or ImageNet features would (Lee et al. 2022).
    """

    weights: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        weights = random_v1_weights()
        assert weights_sha256(weights) == RANDOM_V1_SHA256, (
            "the weights of random_v1 changed: numbers would not compare"
        )
        self.stages = len(weights)
        for stage, weight in enumerate(weights):
            self.register_buffer(f"weight_{stage}", torch.from_numpy(weight))
        self.name = "random_v1"
        self.identity = {
            "description": "features of a fixed random network (random_v1, not ImageNet FID)",
            "weights_sha256": RANDOM_V1_SHA256,
            "dim": 2 * sum(RANDOM_V1_CHANNELS),
            "resize": "none",
            "preprocessing": "rounded to uint8, then to [-1, 1]",
        }

    def features(self, images: Tensor) -> Tensor:
        pooled, x = [], _unit_range(images)
        for stage in range(self.stages):
            # Replicated borders: a frame of zeros would be an edge in every image.
            padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
            x = F.conv2d(padded, getattr(self, f"weight_{stage}"), stride=1 if stage == 0 else 2).relu()
            pooled += [x.mean((2, 3)), x.std((2, 3), correction=0)]
        return torch.cat(pooled, 1)


class TimmExtractor(Extractor):
    """The pooled feature of a timm network, for DINOv2 the normalised [CLS] (FD-DINOv2: Stein et al. 2023).

    Where position embeddings are resampled to the image size, as DINOv2's of 518 px are to 224, that is timm's way
    and part of the identity: tools that resample as DINOv2's release does measure other features.
    """

    network: Any  # timm's interface is more than nn.Module's

    def __init__(self, settings: TimmFeaturesConfig, *, key: str) -> None:
        super().__init__()
        # timm takes seconds to import and only this extractor needs it.
        from mergevq.pretrained import Renormalise, TimmNetworkConfig, timm_network

        network = parse(
            TimmNetworkConfig,
            {"model": settings.name, "weights": settings.weights, "sha256": settings.sha256},
            where=key,
        )
        self.network, positions = timm_network(network, key=key, image_size=settings.image_size)
        self.network.requires_grad_(False).eval()
        cfg = self.network.pretrained_cfg
        self.renormalise = Renormalise(cfg["mean"], cfg["std"])
        self.image_size = settings.image_size
        self.name = safe_name(settings.name)
        self.identity = {
            "description": f"features of timm's {settings.name} (not ImageNet FID)",
            "weights_sha256": file_sha256(settings.weights),
            "dim": int(getattr(self.network, "head_hidden_size", None) or self.network.num_features),
            "resize": f"bicubic, antialiased, to {settings.image_size} x {settings.image_size}",
            "preprocessing": f"rounded to uint8, then to mean {tuple(cfg['mean'])}, std {tuple(cfg['std'])}",
        }
        if positions is not None:
            self.identity["positions"] = positions

    def features(self, images: Tensor) -> Tensor:
        images, size = _unit_range(images), (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(
                -1, 1
            )
        return self.network.forward_head(
            self.network.forward_features(self.renormalise(images)), pre_logits=True
        )


class InceptionExtractor(Extractor):
    """The Inception of FID (Heusel et al. 2017): 2048 pooled features; `outputs` for those of sFID and IS as well."""

    def __init__(self, settings: InceptionFeaturesConfig, *, key: str) -> None:
        super().__init__()
        if is_torchscript(settings.weights):
            raise InputError(
                f"{key}.weights: '{settings.weights}' is a TorchScript program, which is not run: give "
                "pt_inception-2015-12-05-6726825d.pth, the same weights without the program"
            )
        state = read_weights(settings.weights, key=f"{key}.weights", sha256=settings.sha256)
        self.network = Inception()
        for name in self.network.state_dict():
            if name.endswith("num_batches_tracked"):  # means nothing here, and converted files leave it out
                state.setdefault(name, torch.tensor(0))
        load_strictly(self.network, state, key=f"{key}.weights", source=settings.weights)
        digest = file_sha256(settings.weights)
        self.resize: Resize = settings.resize
        self.standard = digest == STANDARD_SHA256
        self.name = "inception" if self.standard else f"inception_{digest[:8]}"
        self.identity = {
            "description": "the standard Inception of FID (2015-12-05)"
            if self.standard
            else "FID's Inception with other weights than the standard ones (not FID)",
            "weights_sha256": digest,
            "dim": 2048,
            "resize": RESIZES[settings.resize],
            "preprocessing": f"rounded to uint8, then as {settings.resize.replace('_', '-')}",
        }

    @torch.no_grad()
    def outputs(self, images: Tensor) -> InceptionOutputs:
        """All features of images (B, 3, H, W) in [-1, 1] in one pass; `pool` is what calling the extractor gives."""
        with torch.autocast(images.device.type, enabled=False), _full_float32():
            return self.network(resized(to_uint8(images), self.resize))

    def features(self, images: Tensor) -> Tensor:
        return self.network(resized(images, self.resize)).pool


def safe_name(model: str) -> str:
    """A timm name as part of a metric's name: `vit_base_patch14_dinov2.lvd142m` is `dinov2_vitb14`."""
    dinov2 = re.fullmatch(r"vit_(small|base|large|giant)_patch14(_reg4)?_dinov2(?:\.lvd142m)?", model)
    if dinov2:
        return f"dinov2_vit{dinov2[1][0]}14{dinov2[2] or ''}"
    return re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")


def random_v1_weights() -> list[np.ndarray]:
    """The kernels (out, in, 3, 3) float32 of `random_v1`: uniform with variance 2 / fan-in (He et al. 2015).

    From raw Philox output by exact arithmetic: the same bits on every platform and with every version of NumPy,
    which promises that only of a bit generator's raw stream.
    """
    bits = np.random.Philox(key=20250401)
    channels, weights = (3, *RANDOM_V1_CHANNELS), []
    for inputs, outputs in pairwise(channels):
        shape = (outputs, inputs, 3, 3)
        raw = bits.random_raw(math.prod(shape)) >> np.uint64(40)
        unit = (raw.astype(np.float64) + 0.5) / 2**23 - 1  # in (-1, 1)
        weights.append((unit * math.sqrt(6 / (9 * inputs))).astype(np.float32).reshape(shape))
    return weights


def weights_sha256(weights: list[np.ndarray]) -> str:
    """The hash of arrays one after the other, as little-endian float32."""
    return hashlib.sha256(b"".join(weight.astype("<f4").tobytes() for weight in weights)).hexdigest()


def _unit_range(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
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
