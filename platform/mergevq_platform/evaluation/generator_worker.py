"""The generator's side of a worker: images of training and of evaluation, reconstructed, sampled, and of the baselines."""

from __future__ import annotations

import time
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergevq.generation import Generator, build_generator
from mergevq.metrics import extractor, to_uint8
from mergevq.metrics.features import Extractor
from mergevq.ragged import NO_TOKEN
from mergevq_platform.data import to_unit_range
from mergevq_platform.evaluation.generator_codes import PositionBaseline, stored_counts
from mergevq_platform.evaluation.generator_results import SHOWN, GeneratorResult
from mergevq_platform.evaluation.neighbours import thumbnails
from mergevq_platform.evaluation.results import merge
from mergevq_platform.evaluation.spec import split_batches
from mergevq_platform.evaluation.statistics import image_set_statistics
from mergevq_platform.evaluation.worker import WorkerProcess
from mergevq_platform.sampling.pipeline import SamplingPipeline, SamplingSpec

RealKind = Literal["train", "real", "reconstructed"]
SampledKind = Literal["generated", "by_position", "untrained"]


class RealJob(NamedTuple):
    """Some batches of real images of a split, or of their reconstructions."""

    kind: RealKind
    batches: tuple[int, ...]
    split: str
    left_out: tuple[int, ...] = ()  # rows of the split, of images that cannot be decoded

    def on_batches(self, process: WorkerProcess) -> GeneratorResult:
        """Statistics of the batches."""
        return process.worker(GeneratorWorker).answer(self)


class SampledJob(NamedTuple):
    """Some batches of sampled images, or of a baseline's."""

    kind: SampledKind
    batches: tuple[int, ...]
    scale: float = 1.0

    def on_batches(self, process: WorkerProcess) -> GeneratorResult:
        """Statistics of the batches."""
        return process.worker(GeneratorWorker).answer(self)


class GeneratorWorker:
    """One process's generator, tokenizer, feature network and images."""

    def __init__(self, spec: SamplingSpec) -> None:
        self.pipeline = SamplingPipeline(spec)
        self.recipe = self.pipeline.recipe
        self.device = self.pipeline.device

    @cached_property
    def extractor(self) -> Extractor:
        """The network of the Fréchet distance."""
        return extractor(self.recipe.evaluation.extractor).to(self.device)

    @cached_property
    def untrained(self) -> Generator:
        """The generator as it was before its first step: same seed, same initialisation."""
        torch.manual_seed(self.recipe.seed)
        return build_generator(self.recipe.generator.model).to(self.device).eval()

    @cached_property
    def position_baseline(self) -> PositionBaseline:
        """Codes of training views, of which the baseline draws."""
        return PositionBaseline.of(self.pipeline)

    @cached_property
    def stored_counts(self) -> np.ndarray:
        """The kept count of every evaluated image, where each has its own."""
        data = self.recipe.data
        return stored_counts(self.recipe, split_batches(self.recipe, data.path, data.evaluation_split))

    @torch.inference_mode()
    def answer(self, job: RealJob | SampledJob) -> GeneratorResult:
        """Do one job."""
        match job:
            case RealJob():
                return merge(self._real(job, index) for index in job.batches)
            case SampledJob():
                return merge(self._sampled(job, index) for index in job.batches)

    def _real(self, job: RealJob, index: int) -> GeneratorResult:
        data = self.recipe.data
        batches = split_batches(self.recipe, data.path, job.split, left_out=job.left_out)
        batch = to_unit_range(batches.batch(index), self.device)
        images, labels = batch["image"], batch["label"]
        if job.kind == "reconstructed":
            images = self._reconstructed(images, batch["sample"])
        positions = index * batches.batch_size + torch.arange(len(images))
        return self._result(images, labels, positions, 0 if job.kind == "train" else batches.images)

    def _sampled(self, job: SampledJob, index: int) -> GeneratorResult:
        settings = self.recipe.generator.generation
        ids = torch.arange(index * settings.batch, min((index + 1) * settings.batch, settings.images))
        labels = ids % self.recipe.generator.model.classes
        began = time.monotonic()
        match job.kind:
            case "generated":
                indices = self.pipeline.codes(labels, ids, scale=job.scale).indices
            case "untrained":
                indices = self.pipeline.codes(labels, ids, scale=1.0, generator=self.untrained).indices
            case "by_position":
                counts = self.pipeline.counts(labels, ids)
                indices = self.position_baseline.codes(ids, self.pipeline.spec.seed, counts)
        images = self.pipeline.decode(indices)
        seconds = time.monotonic() - began
        return self._result(images, labels, ids, settings.images, int((indices != NO_TOKEN).sum()), seconds)

    def _result(
        self,
        images: Tensor,
        labels: Tensor,
        positions: Tensor,
        of: int,
        tokens: int = 0,
        seconds: float = 0.0,
    ) -> GeneratorResult:
        """The result of images at `positions` of a set of `of` images; of 0, the training images, there are no statistics."""
        statistics = image_set_statistics(self.extractor, images, positions, of, features=of) if of else None
        rounded = to_uint8(images)
        tokenizer = self.pipeline.tokenizer
        # The summary is asked of images as a file holds them, as it is of real ones.
        summary, _ = tokenizer.encode_summary(rounded.float() / 127.5 - 1, tokenizer.grid_tokens)
        shown = rounded[positions.to(rounded.device) < SHOWN]
        return GeneratorResult(
            statistics,
            summary.float().cpu().numpy(),
            labels.cpu().numpy(),
            thumbnails(rounded),
            shown.permute(0, 2, 3, 1).cpu().numpy(),
            tokens,
            seconds,
        )

    def _reconstructed(self, images: Tensor, samples: Tensor) -> Tensor:
        # As the generator's codes are decoded: random order with the recovered source.
        tokenizer, spec = self.pipeline.tokenizer, self.pipeline.spec
        keep: int | list[int] = spec.keep or tokenizer.grid_tokens
        if spec.budget is not None:
            keep = self.stored_counts[samples.cpu().numpy()].tolist()
        encoded = tokenizer.encode(images, keep)
        if self.recipe.generator.model.kind == "random_order":
            return self.pipeline.decode(encoded.indices)
        return tokenizer.decode(encoded)
