"""Linear probes of a frozen tokenizer on augmented views, in a training loop (appendix A.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor, nn

from mergevq.config import config, parse, to_tree
from mergevq.errors import InputError
from mergevq.metrics.sgd_probe import ProbeHeads
from mergevq.number_types import Count, Positive
from mergevq.pretrained import FrozenModule
from mergevq.serialization import load_export, read_export, write_model
from mergevq.tokenizer import MergeVQ
from mergevq.training.protocol import Output, ParameterGroup, Training

FORMAT = "mergevq linear probe"


@config
class ProbeTrainingConfig:
    """The probed feature and the heads: one per factor on the recipe's learning rate."""

    feature: Literal["cls", "mean"] = "cls"
    keep: Count | None = None  # none: all tokens, as appendix A.4
    rate_factors: Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)] = (1.0,)
    normalise: bool = True  # batch norm without parameters before the heads


class FrozenFeatures(FrozenModule):
    """Frozen features (B, D) of images (B, 3, H, W) in [-1, 1]; not part of a run's state."""

    def __init__(self, tokenizer: MergeVQ, settings: ProbeTrainingConfig) -> None:
        super().__init__()
        self.tokenizer, self.feature = tokenizer, settings.feature
        self.keep = settings.keep or tokenizer.grid_tokens
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        encoded = self.tokenizer.encoder(images, self.keep)
        return encoded.summary if self.feature == "cls" else encoded.mean()


class ProbePhase(nn.Module):
    """The frozen tokenizer, and heads with their losses."""

    def __init__(self, tokenizer: MergeVQ, heads: ProbeHeads, settings: ProbeTrainingConfig) -> None:
        super().__init__()
        self.tokenizer = FrozenFeatures(tokenizer, settings)
        self.heads = heads

    def forward(
        self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int | None, step: int
    ) -> Output:
        del carry, keep, step
        logits = self.heads(self.tokenizer(batch["image"]))
        losses = self.heads.losses(logits, batch["label"])
        named = {f"head_{index}": loss for index, loss in enumerate(losses.detach())}
        return Output(total=losses.sum(), losses={"total": losses.detach().mean(), **named})


class ProbeTraining(Training):
    """A linear probe in one phase `probe`; the loop's kept count is ignored.

    The average that a loop keeps of the heads is no part of the published recipes: read the heads themselves, or set
    its decay to 0. Which head answers is for held-out training images to say. Raises `InputError` for fewer than
    two classes.
    """

    def __init__(
        self, tokenizer: MergeVQ, settings: ProbeTrainingConfig | None = None, *, classes: int
    ) -> None:
        super().__init__()
        if classes < 2:
            raise InputError(f"a probe needs at least two classes, the data has {classes}")
        self.settings = settings or ProbeTrainingConfig()
        heads = ProbeHeads(
            tokenizer.config.encoder.width,
            classes,
            len(self.settings.rate_factors),
            normalise=self.settings.normalise,
        )
        self.phases = nn.ModuleDict({"probe": ProbePhase(tokenizer, heads, self.settings)})

    def model(self) -> ProbeHeads:
        phase = self.phases["probe"]
        assert isinstance(phase, ProbePhase)
        return phase.heads

    def parameter_groups(self, phase: str) -> list[ParameterGroup]:
        del phase
        heads = self.model()
        return [
            ParameterGroup([parameter], decays=decays, rate_factor=factor)
            for factor, weight, bias in zip(
                self.settings.rate_factors, heads.weights, heads.biases, strict=True
            )
            for parameter, decays in ((weight, True), (bias, False))
        ]

    def export(self, model: nn.Module, directory: str | Path) -> None:
        """Write the heads and their settings."""
        assert isinstance(model, ProbeHeads)
        description = {
            "config": to_tree(self.settings),
            "classes": model.classes,
            "dim": model.weights[0].shape[1],
        }
        write_model(model, FORMAT, description, directory)


def load_probe(directory: str | Path, *, key: str = "probe") -> tuple[ProbeHeads, ProbeTrainingConfig]:
    """The heads that `ProbeTraining.export` wrote, in eval mode on the CPU, and their settings.

    `key` is the configuration key that named the directory. Raises `InputError` when it is not such an export.
    """
    description, where = read_export(directory, FORMAT, what="a linear probe", key=key)
    settings = parse(ProbeTrainingConfig, description["config"], where=where)
    heads = ProbeHeads(
        description["dim"],
        description["classes"],
        len(settings.rate_factors),
        normalise=settings.normalise,
    )
    return load_export(directory, heads, key=key), settings
