"""Allocators calibrated for mean counts on the training split of a tokenizer's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mergevq.allocation import Allocator, Calibration, calibrations, require_within
from mergevq.errors import InputError
from mergevq.tokenizer import MergeVQ
from mergevq_platform.allocation.allocator_ref import AllocatorRef, find_allocator
from mergevq_platform.allocation.scores import AllocationPasses
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.spec import EvaluationSpec
from mergevq_platform.evaluation.tokenizer_passes import TokenizerPasses
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.evaluation.worker import answers
from mergevq_platform.recipe import ResolvedRecipe


@dataclass(frozen=True)
class CalibratedAllocator:
    """An allocator with its constants, in a form that travels to workers."""

    ref: AllocatorRef
    calibration: Calibration

    def load(self, device: torch.device | str = "cpu") -> Allocator:
        """The allocator on a device."""
        return self.ref.load(device)

    def counts(self, tokenizer: MergeVQ, images: Tensor, budget: float) -> Tensor:
        """The kept counts (B,) int64 of images (B, 3, H, W) in [-1, 1] for a mean `budget`.

        Loads the allocator: where there are many batches, load it once and give `calibration.of(budget).constant` to its
        `counts`. Raises `InputError` for a budget that is not calibrated.
        """
        constant = self.calibration.of(budget).constant
        allocator = self.load(images.device)
        return allocator.counts(allocator.scores(tokenizer, images), constant)

    def write(self, folder: Path) -> Path:
        """Write the calibration to `calibration-KIND.json` in a folder; returns the file."""
        path = folder / f"calibration-{self.ref.config.kind}.json"
        self.calibration.write(path)
        return path


def calibrate_allocators(
    checkpoint: str,
    recipe: ResolvedRecipe,
    allocators: Sequence[str],
    budgets: Sequence[float],
    options: EvaluationOptions,
    *,
    menu: Sequence[int] | None = None,
) -> list[CalibratedAllocator]:
    """Allocators by name, calibrated for mean counts with the tokenizer of a checkpoint (a path or URI).

    The images are the first `evaluation.probe_images` of the recipe's training split (None: all), or of that of `options.data`; the
    menu is that of `find_allocator`. Raises `InputError` as `find_allocator` and `calibrate`, budgets outside the menu before
    anything is computed.
    """
    chosen = [find_allocator(name, recipe.tokenizer, menu=menu) for name in dict.fromkeys(allocators)]
    spec = EvaluationSpec(checkpoint, recipe, options.data or recipe.data.path, options.device)
    passes = TokenizerPasses(
        spec, Passes(answers(TokenizerWorker, spec, options.workers), options.cache), options.say
    )
    return calibrated(AllocationPasses(passes), chosen, budgets)


def calibrated(
    passes: AllocationPasses,
    allocators: Sequence[AllocatorRef],
    budgets: Sequence[float],
    *,
    refused: Callable[[AllocatorRef, float, InputError], None] | None = None,
) -> list[CalibratedAllocator]:
    """As `calibrate_allocators`, for passes that are there: the evaluation of allocators shares them.

    A budget within the menu that an allocator cannot reach on these images is left out and told to `refused`, if that is given.
    """
    for allocator in allocators:
        for budget in budgets:
            require_within(budget, allocator.menu)
    return [_calibrated(passes, allocator, budgets, refused) for allocator in allocators]


def _calibrated(
    passes: AllocationPasses,
    ref: AllocatorRef,
    budgets: Sequence[float],
    refused: Callable[[AllocatorRef, float, InputError], None] | None,
) -> CalibratedAllocator:
    tokenizer = passes.tokenizer
    tokenizer.say(f"calibrating {ref.name} on the training split")
    found = calibrations(
        passes.scores(ref, "train"), ref.load(), budgets, refused=refused and partial(refused, ref)
    )
    batches = tokenizer.splits.batches["train"]
    calibration = Calibration(
        allocator=ref.config,
        allocator_sha256=ref.weights_sha256,
        menu=ref.menu,
        tokenizer_sha256=tokenizer.weights["weights_sha256"],
        data_fingerprint=batches.dataset.fingerprint,
        split=batches.dataset.split,
        images=batches.images,
        budgets=found,
    )
    return CalibratedAllocator(ref, calibration)
