"""Linear probes of a frozen tokenizer on augmented views, in a training loop (appendix A.4)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor, nn

from mergevq.config import config, to_tree
from mergevq.errors import InputError
from mergevq.exports import write_export
from mergevq.frozen import Frozen
from mergevq.metrics.sgd_probe import ProbeHeads
from mergevq.tokenizer import MergeVQ
from mergevq.training import Output, ParameterGroup, Training

_FORMAT = "mergevq linear probe"


@config
class ProbeTrainingConfig:
    """What is probed, and at which rates: one head each, at its part of the recipe's learning rate."""

    feature: Literal["cls", "mean"] = "cls"
    keep: Annotated[int, pydantic.Field(ge=1)] | None = None  # none: all tokens, as appendix A.4
    rate_factors: Annotated[
        tuple[Annotated[float, pydantic.Field(gt=0)], ...], pydantic.Field(min_length=1)
    ] = (1.0,)
    normalise: bool = True  # batch norm without parameters before the heads


class FrozenTokenizer(Frozen):
    """A tokenizer whose features (B, D) of pictures (B, 3, H, W) in [-1, 1] are read; no part of a run's state."""

    def __init__(self, tokenizer: MergeVQ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor, feature: Literal["cls", "mean"], keep: int) -> Tensor:
        encoded = self.tokenizer.encoder(images, keep)
        return encoded.summary if feature == "cls" else encoded.mean()


class ProbePhase(nn.Module):
    """The frozen tokenizer, and heads with their losses."""

    def __init__(self, tokenizer: MergeVQ, heads: ProbeHeads, settings: ProbeTrainingConfig) -> None:
        super().__init__()
        self.tokenizer = FrozenTokenizer(tokenizer)
        self.heads, self.settings = heads, settings
        self.keep = settings.keep or tokenizer.grid_tokens

    def forward(
        self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int | None, step: int
    ) -> Output:
        del carry, keep, step
        logits = self.heads(self.tokenizer(batch["image"], self.settings.feature, self.keep))
        losses = self.heads.losses(logits, batch["label"])
        named = {f"head_{index}": loss for index, loss in enumerate(losses.detach())}
        return Output(total=losses.sum(), losses={"total": losses.detach().mean(), **named})


class ProbeTraining(Training):
    """A linear probe in one phase `probe`; the loop's kept count means nothing to it.

    The average that a loop keeps of the heads is no part of the published recipes: read the heads themselves, or set
    its decay to 0. Which head answers is for held-out training pictures to say. Raises `InputError` for fewer than
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
        """Write the heads and their settings; `ProbeHeads` of the same sizes loads the weights."""
        assert isinstance(model, ProbeHeads)
        facts = {"config": to_tree(self.settings), "classes": model.classes}
        write_export(directory, model, _FORMAT, facts)
