"""Feature extractors with weights from a file: timm networks and the Inception of FID."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.file_kinds import is_torchscript
from mergevq.metrics.features import (
    Extractor,
    InceptionFeaturesConfig,
    RandomFeaturesConfig,
    TimmFeaturesConfig,
    full_float32,
    unit_range,
)
from mergevq.metrics.inception import (
    RESIZES,
    STANDARD_SHA256,
    Inception,
    InceptionOutputs,
    Resize,
    resized,
)
from mergevq.metrics.pixels import to_uint8
from mergevq.metrics.random_features import (
    RandomExtractor,
)
from mergevq.weights_file import file_sha256, load_strictly, read_weights


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
        images, size = unit_range(images), (self.image_size, self.image_size)
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
        with torch.autocast(images.device.type, enabled=False), full_float32():
            return self.network(resized(to_uint8(images), self.resize))

    def features(self, images: Tensor) -> Tensor:
        return self.network(resized(images, self.resize)).pool


def safe_name(model: str) -> str:
    """A timm name as part of a metric's name: `vit_base_patch14_dinov2.lvd142m` is `dinov2_vitb14`."""
    dinov2 = re.fullmatch(r"vit_(small|base|large|giant)_patch14(_reg4)?_dinov2(?:\.lvd142m)?", model)
    if dinov2:
        return f"dinov2_vit{dinov2[1][0]}14{dinov2[2] or ''}"
    return re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_")
