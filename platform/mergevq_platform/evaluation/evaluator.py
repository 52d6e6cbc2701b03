"""One process's models and data, which answer jobs of whole evaluation batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

import mergevq
from mergevq.merging import mean_over_cells
from mergevq.metrics import (
    CodeUsage,
    Mean,
    Ssim,
    Votes,
    extractor,
    knn_votes,
    linear_probe,
    precision_recall,
    to_uint8,
)
from mergevq.metrics.lpips import LpipsDistance
from mergevq.metrics.pixels import WINDOW, MsSsim
from mergevq.metrics.sgd_probe import PUBLISHED, sgd_probe
from mergevq.tokenizer import MergeVQ
from mergevq_platform.data import EvalBatches, to_unit_range
from mergevq_platform.distributed.ordered_map import Share
from mergevq_platform.evaluation.answers import Reconstruction, merge
from mergevq_platform.evaluation.subject import Subject, split_batches
from mergevq_platform.recipe import parse_resolved
from mergevq_platform.seen import Seen, see
from mergevq_platform.storage import checkpoints

MANIFOLD_PICTURES = 10_000  # of each set, at most, whose features precision and recall compare
DECODED_BYTES = 512 * 1024**2  # decoded pictures that one process keeps


class Job(NamedTuple):
    """A piece of work: some batches of a split at one kept count."""

    kind: Literal["reference", "reconstruction", "features", "untrained"]
    split: str
    keep: int
    batches: tuple[int, ...]
    seed: int = 0  # of an untrained tokenizer, counted up from the recipe's
    left_out: tuple[int, ...] = ()  # rows of the split, of images that cannot be decoded


class ProbeJob(NamedTuple):
    """Features of one kind, (B, D) float32, with labels (B,): learn on the first two, score on the last two."""

    suffix: str  # of the metrics' names
    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    protocol: str = "exact"  # or one of `PUBLISHED`
    seed: int = 0  # of a published protocol's order and start


class ManifoldJob(NamedTuple):
    """Features (M, D) and (N, D) float32: which of each set lie on the other's manifold?"""

    judged: np.ndarray
    reference: np.ndarray


class Evaluator:
    """One process's models and data; answers jobs."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.recipe = parse_resolved(subject.recipe)
        self.device = torch.device(subject.device)
        self.extractor = extractor(self.recipe.evaluation.extractor).to(self.device)
        lpips = self.recipe.evaluation.lpips
        self.lpips = LpipsDistance(lpips).to(self.device) if lpips else None
        self.decoded: dict[tuple[EvalBatches, int], dict[str, Tensor]] = {}
        self.opened: dict[tuple[str, tuple[int, ...]], EvalBatches] = {}
        self.room = DECODED_BYTES
        self._untrained: dict[int, MergeVQ] = {}

    @cached_property
    def tokenizer(self) -> MergeVQ:
        """The trained tokenizer (averaged weights), in evaluation mode."""
        if self.subject.checkpoint is None:
            return self.untrained()
        with checkpoints.weights(self.subject.checkpoint) as directory:
            return mergevq.load(directory).to(self.device).eval()

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
            opened = split_batches(self.recipe, self.subject.data, split, left_out=left_out)
            self.opened[split, left_out] = opened
        return self.opened[split, left_out]

    def batch(self, batches: EvalBatches, index: int) -> dict[str, Tensor]:
        """One batch on the device; pictures are decoded once for all kept counts, as far as memory is set aside."""
        if (batches, index) not in self.decoded:
            batch = batches.batch(index)
            size = batch["image"].nbytes
            if size > self.room:
                return to_unit_range(batch, self.device)
            self.room -= size
            self.decoded[batches, index] = batch
        return to_unit_range(self.decoded[batches, index], self.device)

    def pictures(self, batches: EvalBatches, places: Iterable[int]) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of a split's batches by their positions, on the device."""
        size = batches.batch_size
        return torch.stack(
            [self.batch(batches, int(place) // size)["image"][int(place) % size] for place in places]
        )

    @torch.no_grad()
    def answer(self, job: Job | ProbeJob | ManifoldJob | Share[ProbeJob]) -> Any:
        """Do one job; a share of a probe's is the nearest neighbours of a share of its test and held-out features."""
        match job:
            case Share(of, number, shares):
                return knn_votes(*_tensors(of, self.device), share=(number, shares))
            case ProbeJob():
                return probe_metrics(job, self.device)
            case ManifoldJob():
                found = precision_recall(*_tensors(job, self.device))
                return {"precision": found.precision, "recall": found.recall}
            case Job():
                return merge(self._batch(job, index) for index in job.batches)

    def _see(self, job: Job, index: int, images: Tensor) -> Seen:
        batches = self.batches(job.split, job.left_out)
        places = index * batches.batch_size + torch.arange(len(images))
        return see(self.extractor, images, places, batches.images, features=MANIFOLD_PICTURES)

    def _batch(self, job: Job, index: int) -> Any:
        batch = self.batch(self.batches(job.split, job.left_out), index)
        images, keep = batch["image"], job.keep
        match job.kind:
            case "reference":
                return self._see(job, index, images)
            case "reconstruction":
                return self._reconstruct(job, index, images)
            case "features" | "untrained":
                model = self.tokenizer if job.kind == "features" else self.untrained(job.seed)
                return features(model, images, keep) | {"label": batch["label"].cpu().numpy()}

    def _reconstruct(self, job: Job, index: int, images: Tensor) -> Reconstruction:
        result = Reconstruction(codes=CodeUsage(self.tokenizer.config.quantizer.vocabulary))
        encoded = self.tokenizer.encode(images, job.keep)
        painted = self.tokenizer.decode(encoded)
        result.true = self._see(job, index, painted)
        result.psnr.update(images, painted)
        result.each_psnr = (
            result.psnr.scores(to_uint8(images).double(), to_uint8(painted).double()).cpu().numpy()
        )
        if min(images.shape[-2:]) >= WINDOW:
            result.ssim = Ssim()
            result.ssim.update(images, painted)
        if scales := MsSsim.most_scales(*images.shape[-2:]):
            result.ms_ssim = MsSsim(scales)
            result.ms_ssim.update(images, painted)
        if self.lpips is not None:
            result.lpips = Mean(self.lpips.name)
            result.lpips.update(self.lpips(images, painted))
        assert result.codes is not None
        result.codes.update(encoded.indices)
        if self.tokenizer.config.recovery is not None:
            slots = self.tokenizer.recover(encoded.codes).argmax(-1)
            result.recovery.update(slots, encoded.source.assignment)
            repainted = self.tokenizer.decode_indices(encoded.indices)
            result.recovered.update(self.extractor(repainted))
            result.psnr_recovered.update(images, repainted)
        return result


def features(model: MergeVQ, images: Tensor, keep: int) -> dict[str, np.ndarray]:
    """Features of pictures (B, 3, H, W): `cls`, the summary token, and `mean`, the kept tokens averaged over the
    cells they stand for, before quantization; each (B, D) float32."""
    encoded = model.encode(images, keep)
    mean = mean_over_cells(encoded.kept_tokens, encoded.source.size)
    return {"cls": encoded.summary.float().cpu().numpy(), "mean": mean.float().cpu().numpy()}


def probe_metrics(job: ProbeJob, device: torch.device) -> dict[str, float]:
    """Top-1 (percent) with its 95% interval of the exact probe, or of a published protocol's.

    Beside it the setting that was chosen without the test split: C, or the learning rate.
    """
    train_x, train_y, test_x, test_y = _tensors(job, device)
    name = job.suffix
    if job.protocol != "exact":
        sgd = sgd_probe(train_x, train_y, test_x, test_y, PUBLISHED[job.protocol], seed=job.seed)
        key = f"probe_{job.protocol}_top1_{name}"
        return {
            key: sgd.top1,
            f"{key}_low": sgd.interval[0],
            f"{key}_high": sgd.interval[1],
            f"probe_{job.protocol}_rate_{name}": sgd.learning_rate,
        }
    probe = linear_probe(train_x, train_y, test_x, test_y)
    return {
        f"probe_top1_{name}": probe.top1,
        f"probe_top1_{name}_low": probe.interval[0],
        f"probe_top1_{name}_high": probe.interval[1],
        f"probe_C_{name}": probe.C,
    }


def knn_metrics(votes: Votes, name: str) -> dict[str, float]:
    """Top-1 (percent) of nearest neighbours, their number, chosen without the test split, and top-1 of each number."""
    knn = votes.result()
    return {
        f"knn_top1_{name}": knn.top1,
        f"knn_k_{name}": float(knn.k),
        **{f"knn_top1_{name}_k{k}": top1 for k, top1 in knn.by_k.items()},
    }


def _tensors(job: ProbeJob | ManifoldJob, device: torch.device) -> Iterator[Tensor]:
    return (torch.from_numpy(array).to(device) for array in job if isinstance(array, np.ndarray))
