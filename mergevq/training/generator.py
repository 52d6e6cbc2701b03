"""Training of a generator on a tokenizer's codes (stage 2)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.generation.config import GeneratorTrainingConfig, is_ragged
from mergevq.generation.model import Generator
from mergevq.serialization import save_generator
from mergevq.training.protocol import Output, Training


class GeneratorPhase(nn.Module):
    """The generator with its loss: the sum of the sub-tokens' cross-entropies, each averaged over all targets.

    Where images keep different counts, the average is over the targets of an image first and over the images then: each
    image weighs the same, as it does where batches have one count, so that a loss depends neither on how a batch is cut into
    micro-batches and dealt to workers nor on what is padded.
    """

    def __init__(self, generator: Generator, config: GeneratorTrainingConfig) -> None:
        super().__init__()
        self.generator = generator
        self.config = config

    def forward(
        self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int | None, step: int
    ) -> Output:
        """`batch`: indices (B, K) int64 in canonical order, assignment (B, N) int64, label (B,) int64, -1 for none; `count`
        (B,) int64 where the images keep different counts, the indices being padded at the end.

        `keep`: K, or None for that of the indices. Losses: `total`; per sub-token j `token_loss_j`, unsmoothed, in nats, and
        `accuracy_j` given the earlier ones; `accuracy` of whole codes, each sub-token predicted from the true ones before it;
        of a ragged generator also `kept_tokens`, the mean count. Dropped labels, dropout and orders come from PyTorch's global
        random numbers; in eval mode only orders do.
        """
        del carry, step
        labels, indices = batch["label"], batch["indices"]
        if self.training:
            dropped = torch.rand(labels.shape, device=labels.device) < self.generator.config.label_drop
            labels = labels.masked_fill(dropped, -1)
        counts = batch.get("count", indices.shape[1] if keep is None else keep)
        prediction = self.generator(indices, batch["assignment"], labels, counts)
        parts = self.generator.tokens.split(prediction.targets).flatten(0, 1)
        mean = TargetMean.of(prediction.present)
        losses: dict[str, Tensor] = {}
        terms, right = [], []
        for j, logits in enumerate(prediction.logits):
            rows = logits.flatten(0, 1).float()
            terms.append(mean.cross_entropy(rows, parts[:, j], label_smoothing=self.config.label_smoothing))
            with torch.no_grad():
                losses[f"token_loss_{j}"] = mean.cross_entropy(rows, parts[:, j])
                right.append(rows.argmax(-1) == parts[:, j])
                losses[f"accuracy_{j}"] = mean(right[-1].float())
        losses["accuracy"] = mean(torch.stack(right).all(0).float())
        total = torch.stack(terms).sum()
        losses["total"] = total
        if is_ragged(self.generator.config):
            each = counts.float() if isinstance(counts, Tensor) else total.new_full((), counts)
            losses["kept_tokens"] = each.mean()
        return Output(total=total, losses={name: value.detach() for name, value in losses.items()})


@dataclass(frozen=True)
class TargetMean:
    """The mean over the targets of a batch; of images with different counts, the mean over images of each one's mean."""

    weights: Tensor | None  # (B T,) float32 that sum to 1; None: all alike

    @classmethod
    def of(cls, present: Tensor | None) -> TargetMean:
        """The mean over targets that are `present` (B, T) bool; None: all."""
        if present is None:
            return cls(None)
        return cls((present / present.sum(1, keepdim=True) / len(present)).flatten())

    def __call__(self, values: Tensor) -> Tensor:
        """The mean of values (B T,) float32."""
        return values.mean() if self.weights is None else (values * self.weights).sum()

    def cross_entropy(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The mean cross-entropy of logits (B T, V) float32 and targets (B T,) int64."""
        if self.weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        return self(F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none"))


class GeneratorTraining(Training):
    """The training of a generator in one phase, `generator`; kept counts must be among the generator's.

    `histogram` (C + 1, M) int64: images of each class, and of none, at each of the M counts of a ragged generator.
    """

    def __init__(
        self,
        generator: Generator,
        config: GeneratorTrainingConfig | None = None,
        histogram: Tensor | None = None,
    ) -> None:
        super().__init__()
        if histogram is not None:
            generator.count_histogram.copy_(histogram)
        phase = GeneratorPhase(generator, config or GeneratorTrainingConfig())
        self.phases = nn.ModuleDict({"generator": phase})

    def model(self) -> Generator:
        phase = self.phases["generator"]
        assert isinstance(phase, GeneratorPhase)
        return phase.generator

    def export(self, model: nn.Module, directory: str | Path) -> None:
        assert isinstance(model, Generator)
        save_generator(model, directory)
