"""Jobs of the suite `ar_probe`: the codes of images, and a probe that learns them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from mergevq.metrics import FeatureStatistics
from mergevq.metrics.ar_probe import ROWS, ArProbeConfig, code_bits, fit_ar_probe, sample_ar_probe
from mergevq.ragged import NO_TOKEN, token_counts
from mergevq_platform.evaluation.results import Mergeable, merge
from mergevq_platform.evaluation.tokenizer_worker import ImageBatches, TokenizerWorker
from mergevq_platform.evaluation.worker import WorkerProcess


class CodesJob(NamedTuple):
    """The codes of images at one kept count."""

    batches: ImageBatches
    keep: int

    def on_batches(self, process: WorkerProcess) -> dict[str, np.ndarray]:
        """`indices` (B, K) int64."""
        worker = process.worker(TokenizerWorker)
        return merge(
            {
                "indices": worker.tokenizer.encode(worker.images_of(self.batches, index), self.keep)
                .indices.cpu()
                .numpy()
            }
            for index in self.batches.indices
        )


@dataclass
class ArProbeResult(Mergeable):
    """What an AR probe found."""

    bits: np.ndarray  # (B,) float64 of each held-out image
    samples: (
        FeatureStatistics | None
    )  # of its samples; none: the tokenizer has no Source Recovery to decode them with


class ArProbeJob(NamedTuple):
    """An AR probe that learns codes (R, K), is scored on those of held-out images and sampled from.

    One worker does it whole, whatever their number: its steps follow each other. Codes padded with -1 are of images that keep
    fewer.
    """

    train: np.ndarray
    held_out: np.ndarray
    bits: int
    settings: ArProbeConfig

    def on_batches(self, process: WorkerProcess) -> ArProbeResult:
        """Bits of the held-out images, and feature statistics of the samples."""
        worker, settings = process.worker(TokenizerWorker), self.settings
        train, held_out = (
            torch.from_numpy(np.array(part)).to(worker.device) for part in (self.train, self.held_out)
        )
        probe = fit_ar_probe(train, bits=self.bits, settings=settings)
        bits = code_bits(probe, held_out).cpu().numpy()
        if worker.tokenizer.config.recovery is None:
            return ArProbeResult(bits, None)
        counts = token_counts(train) if bool((train == NO_TOKEN).any()) else None
        samples = FeatureStatistics()
        for ids in torch.arange(settings.samples).split(ROWS):
            indices = sample_ar_probe(probe, ids, seed=settings.seed, counts=counts)
            samples.update(worker.extractor(worker.tokenizer.decode_indices(indices)))
        return ArProbeResult(bits, samples)
