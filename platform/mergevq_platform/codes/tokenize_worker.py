"""The tokenizer's side of packing codes: a worker that writes planned shards, each whole or absent.

Views of a training image come in pairs, as the generators' papers train on: crop 0 is the evaluation view (resized, cut in the
middle), crop 1 its mirror image; crops 2 and 3 are a random crop, keyed by (seed, crop, sample), and its mirror image; and so on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from mergevq.image_size import ImageSize
from mergevq.ragged import NO_TOKEN
from mergevq_platform.codes.allocated import AllocatedCounts
from mergevq_platform.codes.codeset import Codes, fit_width, write_shard
from mergevq_platform.codes.manifest import CodeShard
from mergevq_platform.data import (
    Dataset,
    ImageDecodeError,
    ImageRow,
    Reading,
    ViewsConfig,
    evaluation_view,
    make_views,
    open_dataset,
)
from mergevq_platform.distributed.sharded_map import ShardRecords
from mergevq_platform.storage.tokenizer_ref import TokenizerRef

ENCODE_BATCH = 32  # fixed: codes near a sign change may depend on it
DECODING_THREADS = 8


class ImageRange(NamedTuple):
    """Images `start` .. `stop` of a split, at these kept counts."""

    start: int
    stop: int
    keeps: tuple[int | None, ...]  # None: every image its own


@dataclass(frozen=True)
class CodeShardJob:
    """One shard to be written."""

    split: str
    file: str
    crop: int
    blocks: tuple[ImageRange, ...]


@dataclass(frozen=True)
class Tokenization:
    """The specification of a tokenization; travels to workers."""

    tokenizer: TokenizerRef
    data: str
    fingerprints: dict[str, str]
    directory: str
    seed: int
    device: Literal["cpu", "cuda"]
    reading: Reading | None = None
    allocated: AllocatedCounts | None = None  # None: the counts are those of the jobs

    def key(self, job: CodeShardJob) -> str:
        """Digest of everything that decides a shard's content."""
        settings = [self.tokenizer.sha256, self.fingerprints[job.split], self.seed, asdict(job)]
        if self.allocated is not None:
            settings += [self.allocated.sha256, self.allocated.budget]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    @property
    def records(self) -> ShardRecords:
        """The records of finished shards."""
        return ShardRecords(Path(self.directory))


class TokenizedShard(NamedTuple):
    """The result of a planned shard."""

    shard: CodeShard | None
    views: int
    skipped: tuple[str, ...]
    counted: tuple[
        tuple[int, int, int], ...
    ] = ()  # (label, kept count, views), where every image has its own count

    def facts(self) -> dict[str, Any]:
        """The record of a finished shard, as plain values."""
        facts: dict[str, Any] = {
            "shard": asdict(self.shard) if self.shard else None,
            "views": self.views,
            "skipped": list(self.skipped),
        }
        return facts | ({"counted": [list(item) for item in self.counted]} if self.counted else {})

    @classmethod
    def of(cls, facts: dict[str, Any]) -> TokenizedShard:
        """The result that a record tells of."""
        shard = CodeShard.of(facts["shard"]) if facts["shard"] else None
        label, count, views = range(3)
        counted = tuple((item[label], item[count], item[views]) for item in facts.get("counted", ()))
        return cls(shard, facts["views"], tuple(facts["skipped"]), counted)


class TokenizeWorker:
    """One process with the tokenizer; writes shards."""

    def __init__(self, subject: Tokenization) -> None:
        self.subject = subject
        self.tokenizer = subject.tokenizer.load(subject.device)
        allocated = subject.allocated
        self.allocator = None if allocated is None else allocated.calibrated.load(subject.device)
        self.datasets: dict[str, Dataset] = {}

    @torch.inference_mode()
    def answer(self, job: CodeShardJob) -> TokenizedShard:
        """Write one shard and, after it, the record that says so."""
        dataset = self.datasets.setdefault(
            job.split, open_dataset(self.subject.data, job.split, self.subject.reading)
        )
        groups: list[tuple[int | None, Codes]] = []
        skipped: list[str] = []
        views = 0
        for block in job.blocks:
            images, rows = self._views(dataset, block, job.crop, skipped)
            views += len(rows)
            groups += [(keep, self._codes(images, rows, job.crop, keep)) for keep in block.keeps if rows]
        shard = write_shard(Path(self.subject.directory), job.file, groups) if groups else None
        counted = Counter(
            pair
            for _, codes in groups
            for pair in zip(codes.label.tolist(), codes.keep.tolist(), strict=True)
        )
        listed = tuple((label, count, found) for (label, count), found in sorted(counted.items()))
        result = TokenizedShard(shard, views, tuple(skipped), listed if self.allocator else ())
        self.subject.records.write(job.file, self.subject.key(job), result.facts())
        return result

    def _views(
        self, dataset: Dataset, block: ImageRange, crop: int, skipped: list[str]
    ) -> tuple[np.ndarray, list[ImageRow]]:
        def view(row: ImageRow) -> np.ndarray | str:
            try:
                return view_of(
                    dataset.image(row), self.subject.tokenizer.image_size, self.subject.seed, row.sample, crop
                )
            except ImageDecodeError as error:
                return f"{dataset.place(row.sample)} {error}"

        rows = dataset.read(range(block.start, block.stop))
        with ThreadPoolExecutor(min(DECODING_THREADS, os.cpu_count() or 1)) as pool:
            made = list(pool.map(view, rows))
        skipped += [reason for reason in made if isinstance(reason, str)]
        usable = [(item, row) for item, row in zip(made, rows, strict=True) if not isinstance(item, str)]
        images = [item for item, _ in usable]
        return np.stack(images) if images else np.empty(0), [row for _, row in usable]

    def _codes(self, views: np.ndarray, rows: list[ImageRow], crop: int, keep: int | None) -> Codes:
        indices, assignment = [], []
        for start in range(0, len(views), ENCODE_BATCH):
            batch = torch.from_numpy(views[start : start + ENCODE_BATCH]).to(self.subject.device)
            images = batch.permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1)
            encoded = self.tokenizer.encode(images, self._counts(images) if keep is None else keep)
            indices.append(encoded.indices.cpu().numpy())
            assignment.append(encoded.source.assignment.cpu().numpy())
        longest = max(part.shape[1] for part in indices)
        joined = np.concatenate([fit_width(part, longest) for part in indices])
        return Codes(
            joined,
            np.concatenate(assignment),
            np.array([row.label for row in rows], dtype=np.int64),
            np.array([row.sample for row in rows], dtype=np.int64),
            np.full(len(rows), crop, dtype=np.int64),
            (joined != NO_TOKEN).sum(1),
        )

    def _counts(self, images: torch.Tensor) -> torch.Tensor:
        assert self.allocator is not None
        assert self.subject.allocated is not None
        scores = self.allocator.scores(self.tokenizer, images)
        return self.allocator.counts(scores, self.subject.allocated.constant)


def view_of(image: Any, size: ImageSize, seed: int, sample: int, crop: int) -> np.ndarray:
    """A view of an RGB image, uint8 (h, w, 3); see the module's docstring."""
    pair, mirrored = divmod(crop, 2)
    if pair == 0:
        pixels = evaluation_view(image, size)
    else:
        pixels = make_views(image, ViewsConfig(image_size=size), seed=seed, epoch=pair, sample=sample)[
            "image"
        ]
    return pixels[:, ::-1] if mirrored else pixels
