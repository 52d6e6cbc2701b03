"""Fine-tuning of Source Recovery after stage 2, the rest of the tokenizer frozen (appendix A.1, Table A2).

The true source comes from encoding an image. The paper tunes together with the learned generator and does not say how:
here the generator, if there is one, resamples a share of each image's codes, given the others, and the image's source
stays the target. Recovery so sees the codes that it will have to place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic
import torch
from torch import Tensor, nn

from mergevq import serialization
from mergevq.config import config
from mergevq.errors import InputError
from mergevq.generation import Generator, sample
from mergevq.losses.reconstruction import RecoveryLossConfig, recovery_loss
from mergevq.pretrained import FrozenModule
from mergevq.tokenizer import MergeVQ
from mergevq.training.protocol import Output, Training


@config
class RecoveryTrainingConfig:
    """The loss, as in stage 1 (`RecoveryLossConfig`), and the share of codes that a generator resamples."""

    loss: Literal["categorical", "binary"] = "categorical"
    generated_fraction: Annotated[float, pydantic.Field(gt=0, lt=1)] = (
        0.25  # of an image's codes, at most: each batch draws its share below
    )


class CodeResampler(FrozenModule):
    """A random-order generator that resamples some codes of real images; not part of a run's state.

    A batch's share is uniform between 0 and `fraction`; which codes, and what becomes of them, differs by image. They are
    drawn in one pass, each given the image's label and the codes that stay, without guidance, as the last passes of
    parallel decoding draw theirs. Raises `InputError` for a generator of another kind, which needs no recovery.
    """

    def __init__(self, generator: Generator, fraction: float) -> None:
        super().__init__()
        if generator.config.kind != "random_order":
            raise InputError(
                f"a {generator.config.kind} generator gives every cell its code and needs no Source Recovery: "
                "name a random-order one, or none"
            )
        self.generator, self.fraction = generator, fraction
        self.freeze()

    @torch.no_grad()
    def forward(self, indices: Tensor, labels: Tensor) -> Tensor:
        """Indices (B, K) and labels (B,), int64, -1 for no class -> indices (B, K).

        Draws from PyTorch's generator on the CPU, which a loop seeds by (seed, step, rank).
        """
        batch, keep = indices.shape
        count = round(float(torch.rand(())) * self.fraction * keep)
        seed = int(torch.randint(2**31, ()))
        stays = (torch.rand(batch, keep).argsort(1) >= count).to(indices.device)
        if not count:
            return indices
        written = sample(
            self.generator,
            labels,
            keep=keep,
            sample_ids=torch.arange(batch),
            seed=seed,
            steps=1,
            fixed=indices,
            fixed_mask=stays,
        ).indices
        return written.clone()  # autograd takes no tensor that was made in inference mode


class RecoveryPhase(nn.Module):
    """The tokenizer, of which recovery alone learns, with the loss of recovery."""

    def __init__(
        self, tokenizer: MergeVQ, settings: RecoveryTrainingConfig, resampler: CodeResampler | None
    ) -> None:
        super().__init__()
        self.tokenizer, self.resampler = tokenizer, resampler
        self.term = RecoveryLossConfig(weight=1.0, loss=settings.loss, detach=True)

    def train(self, mode: bool = True) -> RecoveryPhase:
        super().train(mode)
        self.tokenizer.eval()  # its codes are those of use: without drop path
        if self.tokenizer.recovery is not None:
            self.tokenizer.recovery.train(mode)
        return self

    def forward(
        self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int | None, step: int
    ) -> Output:
        """`batch`: image (B, 3, H, W) in [-1, 1], with a generator also label (B,) int64, -1 for none.

        Losses: `total`, `recovery_accuracy` and `recovery_baseline` as in stage 1 and, with a generator,
        `changed_fraction`, the share of codes that differ after resampling.
        """
        del carry, step
        images = batch["image"]
        # In float32 as everywhere that codes are made: a sign that bfloat16 turns is another code.
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            encoded = self.tokenizer.encode(images, keep, check_values=False)
            codes, changed = encoded.codes, {}
            if self.resampler is not None:
                indices = self.resampler(encoded.indices, batch["label"])
                codes = self.tokenizer.quantizer.codes(indices).to(codes.dtype)
                changed["changed_fraction"] = (indices != encoded.indices).float().mean()
        terms = recovery_loss(self.term, self.tokenizer.recover(codes), encoded.source.assignment)
        losses = {
            "total": terms.loss.detach(),
            "recovery_accuracy": terms.accuracy,
            "recovery_baseline": terms.baseline,
        }
        return Output(total=terms.loss, losses=losses | changed)


class RecoveryTraining(Training):
    """Fine-tuning in one phase `recovery`; every other weight of the tokenizer stays what it is, and so do its codes.

    Raises `InputError` for a tokenizer without Source Recovery and for a generator that is not of random order.
    """

    def __init__(
        self,
        tokenizer: MergeVQ,
        settings: RecoveryTrainingConfig | None = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__()
        if tokenizer.recovery is None:
            raise InputError(
                "this tokenizer has no Source Recovery to fine-tune: train one with model.recovery"
            )
        self.settings = settings or RecoveryTrainingConfig()
        tokenizer.requires_grad_(False)
        tokenizer.recovery.requires_grad_(True)
        resampler = CodeResampler(generator, self.settings.generated_fraction) if generator else None
        self.phases = nn.ModuleDict({"recovery": RecoveryPhase(tokenizer, self.settings, resampler)})
        self.train()

    def model(self) -> MergeVQ:
        phase = self.phases["recovery"]
        assert isinstance(phase, RecoveryPhase)
        return phase.tokenizer

    def export(self, model: nn.Module, directory: str | Path) -> None:
        """Write a complete tokenizer."""
        assert isinstance(model, MergeVQ)
        serialization.save(model, directory)
