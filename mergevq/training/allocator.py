"""Training of a learned allocator on measured distortions, the tokenizer frozen and left out.

Features and distortions of an image do not change while the head learns: they are measured before, and are the batch.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from mergevq.allocation.files import save_allocator
from mergevq.allocation.learned import LearnedAllocator, logarithms
from mergevq.config import config
from mergevq.number_types import NonNegative
from mergevq.training.protocol import Output, Training


@config
class AllocatorTrainingConfig:
    """The loss: squared errors of log D, in which the level of an image's curve counts less than its shape.

    A level that is wrong for all counts alike changes the price at which an image buys tokens; a wrong shape changes which it buys.
    """

    level_weight: NonNegative = 0.1  # of the error's mean over the counts, squared; 1 of what is left of it


class AllocatorPhase(nn.Module):
    """The allocator with its loss."""

    def __init__(self, allocator: LearnedAllocator, settings: AllocatorTrainingConfig) -> None:
        super().__init__()
        self.allocator, self.settings = allocator, settings

    def forward(
        self, batch: dict[str, Tensor], carry: dict[str, Tensor], *, keep: int | None, step: int
    ) -> Output:
        """`batch`: features (B, 3D) and distortions (B, M) of images, D in squared levels."""
        del carry, keep, step
        level, shape = (
            part.mean() for part in errors(self.allocator, batch["features"], batch["distortions"])
        )
        loss = shape + self.settings.level_weight * level
        losses = {"total": loss.detach(), "shape_error": shape.detach(), "level_error": level.detach()}
        return Output(total=loss, losses=losses)


class AllocatorTraining(Training):
    """The training of a learned allocator, in one phase `allocator`; the loop's kept count is ignored."""

    def __init__(self, allocator: LearnedAllocator, settings: AllocatorTrainingConfig | None = None) -> None:
        super().__init__()
        phase = AllocatorPhase(allocator, settings or AllocatorTrainingConfig())
        self.phases = nn.ModuleDict({"allocator": phase})

    def model(self) -> LearnedAllocator:
        phase = self.phases["allocator"]
        assert isinstance(phase, AllocatorPhase)
        return phase.allocator

    def export(self, model: nn.Module, directory: str | Path) -> None:
        """Write the allocator; `mergevq.load_allocator` reads it."""
        assert isinstance(model, LearnedAllocator)
        save_allocator(model, directory)


def errors(allocator: LearnedAllocator, features: Tensor, distortions: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors of log D (B,) float32: of their mean over the counts (level), and of what is left of it (shape).

    Features (B, 3D); distortions (B, M), in squared levels.
    """
    error = allocator(features).float() - logarithms(distortions)
    level = error.mean(1, keepdim=True)
    return level.square()[:, 0], (error - level).square().mean(1)
