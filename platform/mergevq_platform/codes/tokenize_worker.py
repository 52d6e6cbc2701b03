"""The tokenizer's side of packing codes: a worker that writes planned shards, each whole or absent.

Views of a training image come in pairs, as the generators' papers train on: crop 0 is the evaluation view (resized, cut in the
middle), crop 1 its mirror image; crops 2 and 3 are a random crop, keyed by (seed, crop, sample), and its mirror image; and so on.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from mergevq.image_size import ImageSize
from mergevq_platform.codes.codeset import Codes, write_shard
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
    keeps: tuple[int, ...]


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

    def key(self, job: CodeShardJob) -> str:
        """Digest of everything that decides a shard's content."""
        settings = [self.tokenizer.sha256, self.fingerprints[job.split], self.seed, asdict(job)]
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


class TokenizeWorker:
    """One process with the tokenizer; writes shards."""

    def __init__(self, subject: Tokenization) -> None:
        self.subject = subject
        self.tokenizer = subject.tokenizer.load(subject.device)
        self.datasets: dict[str, Dataset] = {}

    @torch.inference_mode()
    def answer(self, job: CodeShardJob) -> TokenizedShard:
        """Write one shard and, after it, the record that says so."""
        dataset = self.datasets.setdefault(
            job.split, open_dataset(self.subject.data, job.split, self.subject.reading)
        )
        groups: list[tuple[int, Codes]] = []
        skipped: list[str] = []
        views = 0
        for block in job.blocks:
            images, rows = self._views(dataset, block, job.crop, skipped)
            views += len(rows)
            groups += [(keep, self._codes(images, rows, job.crop, keep)) for keep in block.keeps if rows]
        shard = write_shard(Path(self.subject.directory), job.file, groups) if groups else None
        facts = {"shard": asdict(shard) if shard else None, "views": views, "skipped": skipped}
        self.subject.records.write(job.file, self.subject.key(job), facts)
        return TokenizedShard(shard, views, tuple(skipped))

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

    def _codes(self, views: np.ndarray, rows: list[ImageRow], crop: int, keep: int) -> Codes:
        indices, assignment = [], []
        for start in range(0, len(views), ENCODE_BATCH):
            batch = torch.from_numpy(views[start : start + ENCODE_BATCH]).to(self.subject.device)
            images = batch.permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1)
            encoded = self.tokenizer.encode(images, keep)
            indices.append(encoded.indices.cpu().numpy())
            assignment.append(encoded.source.assignment.cpu().numpy())
        return Codes(
            np.concatenate(indices),
            np.concatenate(assignment),
            np.array([row.label for row in rows], dtype=np.int64),
            np.array([row.sample for row in rows], dtype=np.int64),
            np.full(len(rows), crop, dtype=np.int64),
        )


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
