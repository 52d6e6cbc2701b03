"""The tokenizer's side of a worker: models and images, for jobs of whole evaluation batches."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import mergevq
from mergevq.merging import mean_over_cells
from mergevq.metrics import CodeUsage, Mean, Ssim, extractor, to_uint8
from mergevq.metrics.features import Extractor
from mergevq.metrics.lpips import LpipsDistance
from mergevq.metrics.pixels import WINDOW, MsSsim
from mergevq.tokenizer import MergeVQ
from mergevq_platform.data import EvalBatches, to_unit_range
from mergevq_platform.evaluation.results import merge
from mergevq_platform.evaluation.spec import EvaluationSpec, split_batches
from mergevq_platform.evaluation.statistics import ImageSetStatistics, image_set_statistics
from mergevq_platform.evaluation.tokenizer_results import ReconstructionResult
from mergevq_platform.evaluation.worker import WorkerProcess
from mergevq_platform.storage import checkpoints

MANIFOLD_IMAGES = 10_000  # of each set, at most, whose features precision and recall compare
DECODED_BYTES = 512 * 1024**2  # decoded images that one process keeps

Features = dict[str, np.ndarray]  # arrays (B, …) by name


class ImageBatches(NamedTuple):
    """Some batches of a split."""

    split: str
    indices: tuple[int, ...]
    left_out: tuple[int, ...] = ()  # rows of the split, of images that cannot be decoded


class ReferenceJob(NamedTuple):
    """The images themselves."""

    batches: ImageBatches

    def on_batches(self, process: WorkerProcess) -> ImageSetStatistics:
        """Statistics of the images."""
        worker = process.worker(TokenizerWorker)
        return merge(
            worker.statistics(self.batches, index, worker.images_of(self.batches, index))
            for index in self.batches.indices
        )


class ReconstructionJob(NamedTuple):
    """Reconstructions at one kept count."""

    batches: ImageBatches
    keep: int

    def on_batches(self, process: WorkerProcess) -> ReconstructionResult:
        """Statistics of the reconstructions, and their likeness to the images."""
        worker = process.worker(TokenizerWorker)
        return merge(worker.reconstruct(self, index) for index in self.batches.indices)


class FeaturesJob(NamedTuple):
    """Features at one kept count."""

    batches: ImageBatches
    keep: int
    untrained: int | None = (
        None  # seed of an untrained tokenizer, counted up from the recipe's; none: the trained one
    )

    def on_batches(self, process: WorkerProcess) -> Features:
        """`cls` and `mean` (B, D) float32 and `label` (B,) int64 of the images."""
        worker = process.worker(TokenizerWorker)
        return merge(worker.features(self, index) for index in self.batches.indices)


class TokenizerWorker:
    """One process's tokenizers, feature networks and images."""

    def __init__(self, spec: EvaluationSpec) -> None:
        self.spec = spec
        self.recipe = spec.recipe
        self.device = torch.device(spec.device)
        self.decoded: dict[tuple[EvalBatches, int], dict[str, Tensor]] = {}
        self.opened: dict[tuple[str, tuple[int, ...]], EvalBatches] = {}
        self.free_bytes = DECODED_BYTES
        self._untrained: dict[int, MergeVQ] = {}

    @cached_property
    def tokenizer(self) -> MergeVQ:
        """The trained tokenizer (averaged weights), in evaluation mode."""
        if self.spec.checkpoint is None:
            return self.untrained()
        with checkpoints.weights(self.spec.checkpoint) as directory:
            return mergevq.load(directory).to(self.device).eval()

    @cached_property
    def extractor(self) -> Extractor:
        """The network of the Fréchet distance."""
        return extractor(self.recipe.evaluation.extractor).to(self.device)

    @cached_property
    def lpips(self) -> LpipsDistance | None:
        """LPIPS, where the recipe's evaluation names its weights."""
        files = self.recipe.evaluation.lpips
        return LpipsDistance(files).to(self.device) if files else None

    def untrained(self, seed: int = 0) -> MergeVQ:
        """The tokenizer as it was before its first step: same seed (and the ones after it), same initialisation."""
        if seed not in self._untrained:
            torch.manual_seed(self.recipe.seed + seed)
            # Of a tuned recovery, too, it is the tokenizer before stage 1.
            model = self.recipe.tokenizer.initial_model()
            self._untrained = {seed: model.to(self.device).eval()}  # jobs of one seed follow each other
        return self._untrained[seed]

    def batches(self, split: str, left_out: tuple[int, ...] = ()) -> EvalBatches:
        """The fixed batches of a split, without some of its rows."""
        if (split, left_out) not in self.opened:
            opened = split_batches(self.recipe, self.spec.data, split, left_out=left_out)
            self.opened[split, left_out] = opened
        return self.opened[split, left_out]

    def batch(self, batches: EvalBatches, index: int) -> dict[str, Tensor]:
        """One batch on the device; images are decoded once for all kept counts, as far as memory is set aside."""
        if (batches, index) not in self.decoded:
            batch = batches.batch(index)
            size = batch["image"].nbytes
            if size > self.free_bytes:
                return to_unit_range(batch, self.device)
            self.free_bytes -= size
            self.decoded[batches, index] = batch
        return to_unit_range(self.decoded[batches, index], self.device)

    def images(self, batches: EvalBatches, positions: Iterable[int]) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of a split's batches by their positions, on the device."""
        size = batches.batch_size
        return torch.stack(
            [self.batch(batches, int(at) // size)["image"][int(at) % size] for at in positions]
        )

    def images_of(self, wanted: ImageBatches, index: int) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] of one batch, on the device."""
        return self.batch(self.batches(wanted.split, wanted.left_out), index)["image"]

    def statistics(self, wanted: ImageBatches, index: int, images: Tensor) -> ImageSetStatistics:
        """Statistics of images (B, 3, H, W) that are in the place of one batch."""
        batches = self.batches(wanted.split, wanted.left_out)
        positions = index * batches.batch_size + torch.arange(len(images))
        return image_set_statistics(
            self.extractor, images, positions, batches.images, features=MANIFOLD_IMAGES
        )

    @torch.no_grad()
    def features(self, job: FeaturesJob, index: int) -> Features:
        """Features and labels of one batch."""
        batch = self.batch(self.batches(job.batches.split, job.batches.left_out), index)
        model = self.tokenizer if job.untrained is None else self.untrained(job.untrained)
        return features(model, batch["image"], job.keep) | {"label": batch["label"].cpu().numpy()}

    @torch.no_grad()
    def reconstruct(self, job: ReconstructionJob, index: int) -> ReconstructionResult:
        """Reconstructions of one batch, measured."""
        images = self.images_of(job.batches, index)
        result = ReconstructionResult(codes=CodeUsage(self.tokenizer.config.quantizer.vocabulary))
        encoded = self.tokenizer.encode(images, job.keep)
        decoded = self.tokenizer.decode(encoded)
        result.true = self.statistics(job.batches, index, decoded)
        result.psnr.update(images, decoded)
        result.each_psnr = (
            result.psnr.scores(to_uint8(images).double(), to_uint8(decoded).double()).cpu().numpy()
        )
        if min(images.shape[-2:]) >= WINDOW:
            result.ssim = Ssim()
            result.ssim.update(images, decoded)
        if scales := MsSsim.most_scales(*images.shape[-2:]):
            result.ms_ssim = MsSsim(scales)
            result.ms_ssim.update(images, decoded)
        if self.lpips is not None:
            result.lpips = Mean(self.lpips.name)
            result.lpips.update(self.lpips(images, decoded))
        assert result.codes is not None
        result.codes.update(encoded.indices)
        if self.tokenizer.config.recovery is not None:
            slots = self.tokenizer.recover(encoded.codes).argmax(-1)
            result.recovery.update(slots, encoded.source.assignment)
            recovered_images = self.tokenizer.decode_indices(encoded.indices)
            result.recovered.update(self.extractor(recovered_images))
            result.psnr_recovered.update(images, recovered_images)
        return result


def features(model: MergeVQ, images: Tensor, keep: int) -> dict[str, np.ndarray]:
    """Features of images (B, 3, H, W): `cls`, the summary token, and `mean`, the kept tokens averaged over the
    cells they stand for, before quantization; each (B, D) float32."""
    encoded = model.encode(images, keep)
    mean = mean_over_cells(encoded.kept_tokens, encoded.source.size)
    return {"cls": encoded.summary.float().cpu().numpy(), "mean": mean.float().cpu().numpy()}
