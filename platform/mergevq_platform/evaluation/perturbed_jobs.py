"""Jobs of the suite `generability`: reconstructions of perturbed codes and sources, and the codes of reconstructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from mergevq.metrics import (
    CodeUsage,
    FeatureStatistics,
    perturbed_source_statistics,
    perturbed_statistics,
    to_uint8,
)
from mergevq.perturbation import RATES, Perturbation
from mergevq.tokenizer import Encoded
from mergevq_platform.evaluation.results import Mergeable, merge
from mergevq_platform.evaluation.tokenizer_worker import ImageBatches, TokenizerWorker
from mergevq_platform.evaluation.worker import WorkerProcess

SEED = 0  # of all draws, whatever the recipe's: two tokenizers are perturbed alike

Cells = dict[str, FeatureStatistics]  # by cell of the grid


class PerturbedCodesJob(NamedTuple):
    """Reconstructions at one kept count of codes perturbed at every rate, each by one of so many nearest codes."""

    batches: ImageBatches
    keep: int
    neighbours: int

    def on_batches(self, process: WorkerProcess) -> Cells:
        """Feature statistics for every rate."""
        worker = process.worker(TokenizerWorker)
        grid = [Perturbation(rate, self.neighbours) for rate in RATES]

        def measured(encoded: Encoded, rows: Tensor) -> Cells:
            return perturbed_statistics(worker.tokenizer, worker.extractor, encoded, rows, grid, seed=SEED)

        return _over_batches(worker, self.batches, self.keep, measured)


class PerturbedSourceJob(NamedTuple):
    """Reconstructions at one kept count of the true codes, with a share of the cells given to a draw of Source Recovery."""

    batches: ImageBatches
    keep: int

    def on_batches(self, process: WorkerProcess) -> Cells:
        """Feature statistics for every share."""
        worker = process.worker(TokenizerWorker)

        def measured(encoded: Encoded, rows: Tensor) -> Cells:
            return perturbed_source_statistics(
                worker.tokenizer, worker.extractor, encoded, rows, RATES, seed=SEED
            )

        return _over_batches(worker, self.batches, self.keep, measured)


@dataclass
class CodeHistograms(Mergeable):
    """Codes of the images, of their reconstructions encoded again, and of every second image."""

    images: CodeUsage
    reconstructions: CodeUsage
    half: CodeUsage


class CodeHistogramsJob(NamedTuple):
    """Codes of images at one kept count, and those of their reconstructions at the same."""

    batches: ImageBatches
    keep: int

    def on_batches(self, process: WorkerProcess) -> CodeHistograms:
        """Counts of codes."""
        worker = process.worker(TokenizerWorker)
        return merge(self._counted(worker, index) for index in self.batches.indices)

    def _counted(self, worker: TokenizerWorker, index: int) -> CodeHistograms:
        batch = worker.batch(worker.batches(self.batches.split, self.batches.left_out), index)
        tokenizer = worker.tokenizer
        encoded = tokenizer.encode(batch["image"], self.keep)
        decoded = to_uint8(tokenizer.decode(encoded)).to(batch["image"]) / 127.5 - 1
        counts = [CodeUsage(tokenizer.config.quantizer.vocabulary) for _ in range(3)]
        even = batch["sample"].to(encoded.indices.device) % 2 == 0
        again = tokenizer.encode(decoded, self.keep).indices
        for usage, indices in zip(counts, (encoded.indices, again, encoded.indices[even]), strict=True):
            usage.update(indices)
        return CodeHistograms(*counts)


def _over_batches(
    worker: TokenizerWorker, wanted: ImageBatches, keep: int, measured: Callable[[Encoded, Tensor], Cells]
) -> Cells:
    def one(index: int) -> Cells:
        batch = worker.batch(worker.batches(wanted.split, wanted.left_out), index)
        # An image's draws belong to its row of the split, whatever was left out before it.
        return measured(worker.tokenizer.encode(batch["image"], keep), batch["sample"])

    return merge(one(index) for index in wanted.indices)
