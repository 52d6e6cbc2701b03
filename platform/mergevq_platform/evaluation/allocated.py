"""Images at counts of their own: reconstructions and features of several choices of counts, each (image, count) computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from mergevq.allocation import distortions
from mergevq.metrics import FeatureStatistics
from mergevq_platform.evaluation.probing import LabelledFeatures
from mergevq_platform.evaluation.results import Mergeable, merge
from mergevq_platform.evaluation.spec import batches_key
from mergevq_platform.evaluation.tokenizer_passes import PARTS, TokenizerPasses, lpips_identity
from mergevq_platform.evaluation.tokenizer_worker import ImageBatches, TokenizerWorker
from mergevq_platform.evaluation.worker import WorkerProcess

Name = TypeVar("Name")

STATISTICS_BYTES = 512 * 1024**2  # of the Fréchet statistics of the choices that one pass measures
SUMMARY_BYTES = 1024**3  # of the features that one pass brings


@dataclass
class AllocatedResult(Mergeable):
    """What choices of counts come to: of each its statistics, and the features of all images."""

    statistics: dict[str, FeatureStatistics] = field(default_factory=dict)  # of reconstructions, by choice
    summary: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))  # (B, R, D)
    label: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (B,)


class AllocatedJob(NamedTuple):
    """Some batches, each image at the counts of R choices."""

    batches: ImageBatches
    counts: tuple[np.ndarray, ...]  # (b, R) int64 of each batch
    reconstructed: bool  # whether reconstructions are measured too

    def on_batches(self, process: WorkerProcess) -> AllocatedResult:
        """Statistics of reconstructions and features."""
        worker = process.worker(TokenizerWorker)
        found = zip(self.batches.indices, self.counts, strict=True)
        return merge(self._batch(worker, index, counts) for index, counts in found)

    def _batch(self, worker: TokenizerWorker, index: int, counts: np.ndarray) -> AllocatedResult:
        batch = worker.batch(worker.batches(self.batches.split, self.batches.left_out), index)
        tokenizer, images = worker.tokenizer, batch["image"]
        tokenizer.encoder.check(images, np.unique(counts).tolist())
        cells = tokenizer.encoder.embed(images)
        result = AllocatedResult(label=batch["label"].cpu().numpy())
        features: Tensor | None = None
        for count in np.unique(counts).tolist():
            wanted = counts == count  # (b, R)
            rows = np.flatnonzero(wanted.any(1))
            # A batch that is whole is taken as it is: the same numbers as of one count for all.
            part = cells if len(rows) == len(images) else cells.of(rows.tolist())
            encoded = tokenizer.encode_cells(part, count)
            places = np.nonzero(wanted[rows])
            summary = encoded.summary.float().cpu().numpy()
            if not result.summary.size:
                result.summary = np.zeros((*counts.shape, summary.shape[1]), np.float32)
            result.summary[rows[places[0]], places[1]] = summary[places[0]]
            if self.reconstructed:
                seen = worker.extractor(tokenizer.decode(encoded))
                if features is None:
                    features = seen.new_zeros((*counts.shape, seen.shape[1]))
                features[rows[places[0]], places[1]] = seen[places[0]]
        if features is not None:
            result.statistics = {str(choice): FeatureStatistics() for choice in range(counts.shape[1])}
            for choice, statistics in enumerate(result.statistics.values()):
                statistics.update(features[:, choice])
        return result


class MenuLpipsJob(NamedTuple):
    """LPIPS of every image at every count of a menu."""

    batches: ImageBatches
    menu: tuple[int, ...]

    def on_batches(self, process: WorkerProcess) -> np.ndarray:
        """(B, M) float32."""
        worker = process.worker(TokenizerWorker)
        assert worker.lpips is not None
        return merge(
            distortions(worker.tokenizer, worker.images_of(self.batches, index), self.menu, worker.lpips)
            .float()
            .cpu()
            .numpy()
            for index in self.batches.indices
        )


class Allocated(NamedTuple):
    """One choice of counts, measured."""

    statistics: FeatureStatistics  # of the reconstructions of the evaluated images
    features: LabelledFeatures | None  # of the summary token, where the probe was asked for
    key: dict[str, Any]  # the identity of the choice


@dataclass
class AllocatedPasses:
    """The passes of a tokenizer's images at counts of their own."""

    tokenizer: TokenizerPasses

    def measured(
        self, test: Mapping[Name, np.ndarray], train: Mapping[Name, np.ndarray] | None
    ) -> Iterator[tuple[Name, Allocated]]:
        """Every choice of counts (B,) by name: of the evaluated images and, for a probe, of those that it learns from.

        As many are measured in one pass as fit into memory.
        """
        names = list(test)
        at_once = self._at_once(train is not None)
        for start in range(0, len(names), at_once):
            chosen = names[start : start + at_once]
            seen = self._pass("test", [test[name] for name in chosen])
            learned = self._pass("train", [train[name] for name in chosen]) if train is not None else None
            for place, name in enumerate(chosen):
                features = None
                if learned is not None:
                    x, y = (np.ascontiguousarray(part.summary[:, place]) for part in (learned, seen))
                    features = LabelledFeatures(x, learned.label, y, seen.label)
                of_train = None if train is None else digest(train[name])
                key = {"test": digest(test[name]), "train": of_train, **self.tokenizer.weights}
                yield name, Allocated(seen.statistics[str(place)], features, key)

    def lpips(self, menu: tuple[int, ...]) -> np.ndarray:
        """LPIPS (B, M) of the evaluated images at every count of a menu."""
        files = self.tokenizer.spec.recipe.evaluation.lpips
        assert files is not None

        def key() -> dict[str, Any]:
            batches = batches_key(self.tokenizer.splits.batches["test"])
            return {
                "kind": "menu_lpips",
                **batches,
                "menu": list(menu),
                "lpips": lpips_identity(files),
                **self.tokenizer.weights,
            }

        return self.tokenizer.over("test", key, lambda batches: MenuLpipsJob(batches, menu))

    def _pass(self, part: Literal["train", "test"], choices: Sequence[np.ndarray]) -> AllocatedResult:
        counts = np.column_stack(choices)
        size = self.tokenizer.splits.batches[part].batch_size

        def key() -> dict[str, Any]:
            key = {
                "kind": "allocated",
                **batches_key(self.tokenizer.splits.batches[part]),
                "counts": digest(counts),
            }
            extractor = {"extractor": self.tokenizer.extractor_identity} if part == "test" else {}
            return key | extractor | self.tokenizer.weights

        def job(batches: ImageBatches) -> AllocatedJob:
            of_batches = tuple(counts[index * size : (index + 1) * size] for index in batches.indices)
            return AllocatedJob(batches, of_batches, reconstructed=part == "test")

        return self.tokenizer.over(part, key, job)

    def _at_once(self, probed: bool) -> int:
        dim = int(self.tokenizer.network.identity["dim"])
        width = self.tokenizer.spec.recipe.tokenizer.model.encoder.width
        images = max(self.tokenizer.splits.batches[part].images for part in (PARTS if probed else ("test",)))
        return max(
            1, min(STATISTICS_BYTES // (8 * dim * (dim + 2048)), SUMMARY_BYTES // (4 * width * images))
        )


def digest(counts: np.ndarray) -> str:
    """Hex digest of counts, (B,) or (B, R)."""
    return hashlib.sha256(np.ascontiguousarray(counts, np.int64).tobytes()).hexdigest()
