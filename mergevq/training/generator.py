"""Training of a generator on a tokenizer's codes (stage 2)."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.generation.config import GeneratorTrainingConfig
from mergevq.generation.model import Generator
from mergevq.serialization import save_generator
from mergevq.training.protocol import Output, Training


class GeneratorPhase(nn.Module):
    """The generator with its loss: the sum of the sub-tokens' cross-entropies, each averaged over all targets."""

    def __init__(self, generator: Generator, config: GeneratorTrainingConfig) -> None:
        super().__init__()
        self.generator = generator
        self.config = config

    def forward(self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int, step: int) -> Output:
        """`batch`: indices (B, K) int64 in canonical order, assignment (B, N) int64, label (B,) int64, -1 for none.

        Losses: `total`; per sub-token j `token_loss_j`, unsmoothed, in nats, and `accuracy_j` given the earlier ones;
        `accuracy` of whole codes, each sub-token predicted from the true ones before it. Dropped labels, dropout and
        orders come from PyTorch's global random numbers; in eval mode only orders do.
        """
        del carry, step
        labels = batch["label"]
        if self.training:
            dropped = torch.rand(labels.shape, device=labels.device) < self.generator.config.label_drop
            labels = labels.masked_fill(dropped, -1)
        prediction = self.generator(batch["indices"], batch["assignment"], labels, keep)
        parts = self.generator.tokens.split(prediction.targets).flatten(0, 1)
        losses: dict[str, Tensor] = {}
        terms, right = [], []
        for j, logits in enumerate(prediction.logits):
            rows = logits.flatten(0, 1).float()
            terms.append(F.cross_entropy(rows, parts[:, j], label_smoothing=self.config.label_smoothing))
            with torch.no_grad():
                losses[f"token_loss_{j}"] = F.cross_entropy(rows, parts[:, j])
                right.append(rows.argmax(-1) == parts[:, j])
                losses[f"accuracy_{j}"] = right[-1].float().mean()
        losses["accuracy"] = torch.stack(right).all(0).float().mean()
        total = torch.stack(terms).sum()
        losses["total"] = total
        return Output(total=total, losses={name: value.detach() for name, value in losses.items()})


class GeneratorTraining(Training):
    """The training of a generator in one phase, `generator`; a step's kept count must be one of the generator's."""

    def __init__(self, generator: Generator, config: GeneratorTrainingConfig | None = None) -> None:
        super().__init__()
        phase = GeneratorPhase(generator, config or GeneratorTrainingConfig())
        self.phases = nn.ModuleDict({"generator": phase})

    def model(self) -> Generator:
        phase = self.phases["generator"]
        assert isinstance(phase, GeneratorPhase)
        return phase.generator

    def export(self, model: nn.Module, directory: str | Path) -> None:
        assert isinstance(model, Generator)
        save_generator(model, directory)
