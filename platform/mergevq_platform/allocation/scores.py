"""The scores of allocators on a split: workers compute them, the cache of evaluations keeps them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergevq.allocation import OracleAllocatorConfig
from mergevq_platform.allocation.allocator_ref import AllocatorRef
from mergevq_platform.evaluation.results import merge
from mergevq_platform.evaluation.spec import batches_key
from mergevq_platform.evaluation.tokenizer_passes import TokenizerPasses, lpips_identity
from mergevq_platform.evaluation.tokenizer_worker import ImageBatches, TokenizerWorker
from mergevq_platform.evaluation.worker import WorkerProcess

Part = Literal["train", "test"]  # what allocators are calibrated on, and what is evaluated


class ScoresJob(NamedTuple):
    """What an allocator sees in images."""

    batches: ImageBatches
    allocator: AllocatorRef

    def on_batches(self, process: WorkerProcess) -> np.ndarray:
        """The scores (B,) or (B, M) float64, see `Allocator.scores`."""
        worker = process.worker(TokenizerWorker)
        allocator = self.allocator.load(worker.device)
        return merge(
            allocator.scores(worker.tokenizer, worker.images_of(self.batches, index)).cpu().numpy()
            for index in self.batches.indices
        )


@dataclass
class AllocationPasses:
    """The passes of allocators over the images of one tokenizer's evaluation."""

    tokenizer: TokenizerPasses

    def scores(self, allocator: AllocatorRef, part: Part) -> Tensor:
        """The scores (B,) or (B, M) float64 of the images of a part, on the CPU: equal for any number of workers.

        Raises `InputError` for an allocator that learnt for another tokenizer.
        """
        allocator.require_tokenizer(self.tokenizer.weights.get("weights_sha256"))

        def key() -> dict[str, Any]:
            batches = self.tokenizer.splits.batches[part]
            config = allocator.config
            files = config.lpips if isinstance(config, OracleAllocatorConfig) else None
            return {
                "kind": "allocation",
                **batches_key(batches),
                **allocator.identity,
                **({"lpips": lpips_identity(files)} if files else {}),
                **self.tokenizer.weights,
            }

        found = self.tokenizer.over(part, key, lambda batches: ScoresJob(batches, allocator))
        return torch.from_numpy(np.require(found, requirements="W"))
