"""Judging a generator: over guidance scales, how far its pictures are from real ones, and whether their class is recognised.

Beside every number stand its baselines (codes drawn position by position from the training codes, the generator before its first
step) and its ceiling (reconstructions of real pictures by the same tokenizer). The work is cut into jobs of whole batches; answers
are merged in job order, so that any number of workers gives one result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import mergevq
from mergevq.generation import build_generator
from mergevq.metrics import (
    distance_name,
    extractor,
    frechet_distance,
    linear_probe,
    precision_recall,
    score_name,
    to_uint8,
)
from mergevq_platform.codes import open_codes
from mergevq_platform.data import EvalBatches, Reading, open_dataset, to_unit_range
from mergevq_platform.data.background import DROPPED
from mergevq_platform.data.keyed import Stream, uniforms
from mergevq_platform.generation.maker import Maker, Sampler
from mergevq_platform.generator_report import GeneratorReport
from mergevq_platform.pool import Answers
from mergevq_platform.recipe import resolve
from mergevq_platform.seen import Seen, see

BATCHES_PER_JOB = 2
SMALL = 32  # pictures are compared with their neighbours at this many pixels a side
POSITION_ROWS = 4096  # training views whose codes the position baseline draws from
SHOWN = 48  # pictures of each point that the figures may show

Kind = Literal["real", "reconstructed", "generated", "by_position", "untrained"]


class Job(NamedTuple):
    """Some batches: of real pictures of `split`, or of pictures made at `scale`."""

    kind: Kind
    batches: tuple[int, ...]
    split: str = ""
    scale: float = 1.0


@dataclass
class Measured:
    """What is known of a set of pictures."""

    seen: Seen | None  # by the extractor; none of training pictures
    summary: np.ndarray  # (B, D) float32, the tokenizer's summary with all tokens kept
    labels: np.ndarray  # (B,) int64: their class, or the one asked for
    small: np.ndarray  # (B, 3 * SMALL * SMALL) uint8
    first: np.ndarray  # (at most SHOWN, H, W, 3) uint8: the first of them, to be looked at
    tokens: int = 0
    seconds: float = 0.0  # of making codes and pictures

    def merge(self, other: Measured) -> Measured:
        """Of both sets."""
        return Measured(
            seen=None if self.seen is None or other.seen is None else self.seen.merge(other.seen),
            summary=np.concatenate([self.summary, other.summary]),
            labels=np.concatenate([self.labels, other.labels]),
            small=np.concatenate([self.small, other.small]),
            first=np.concatenate([self.first, other.first])[:SHOWN],
            tokens=self.tokens + other.tokens,
            seconds=self.seconds + other.seconds,
        )


class Judge:
    """One process's models and data; answers jobs."""

    def __init__(self, sampler: Sampler) -> None:
        self.maker = Maker(sampler)
        self.recipe = resolve(sampler.recipe)
        self.device = torch.device(sampler.device)
        self.extractor = extractor(self.recipe.evaluation.extractor).to(self.device)

    @cached_property
    def untrained(self) -> Any:
        """The generator as it was before its first step: same seed, same initialisation."""
        torch.manual_seed(self.recipe.seed)
        return build_generator(self.recipe.generator.model).to(self.device).eval()

    @cached_property
    def training_codes(self) -> np.ndarray:
        """Codes of training views, (R, P) int64: P cells, or P kept tokens in random order."""
        return training_codes(self.maker)

    @torch.inference_mode()
    def answer(self, job: Job) -> Measured:
        """Measure the pictures of a job."""
        parts = [self._batch(job, index) for index in job.batches]
        return merged(parts)

    def _batch(self, job: Job, index: int) -> Measured:
        if job.kind in ("real", "reconstructed"):
            batches = real_batches(self.maker, job.split)
            batch = to_unit_range(batches.batch(index), self.device)
            images, labels = batch["image"], batch["label"]
            if job.kind == "reconstructed":
                images = self._reconstructed(images)
            if job.split == self.recipe.data.train_split:
                return self._measured(images, labels)
            places = index * batches.batch_size + torch.arange(len(images))
            return self._measured(images, labels, places, batches.images)
        settings = self.recipe.generator.generation
        ids = torch.arange(index * settings.batch, min((index + 1) * settings.batch, settings.images))
        labels = ids % self.recipe.generator.model.classes
        began = time.monotonic()
        match job.kind:
            case "generated":
                indices = self.maker.codes(labels, ids, scale=job.scale).indices
            case "untrained":
                indices = self.maker.codes(labels, ids, scale=1.0, generator=self.untrained).indices
            case _:
                indices = self._by_position(ids)
        images = self.maker.pictures(indices)
        seconds = time.monotonic() - began
        return self._measured(images, labels, ids, settings.images, indices.numel(), seconds)

    def _measured(
        self,
        images: Tensor,
        labels: Tensor,
        places: Tensor | None = None,
        of: int = 0,
        tokens: int = 0,
        seconds: float = 0.0,
    ) -> Measured:
        """Of pictures at `places` among `of` that are judged together; without places, of training pictures."""
        seen = None if places is None else see(self.extractor, images, places, of, features=of)
        rounded = to_uint8(images)
        # The summary is asked of pictures as a file holds them, as it is of real ones.
        summary, _ = self.maker.tokenizer.encode_summary(
            rounded.float() / 127.5 - 1, self.maker.tokenizer.grid_tokens
        )
        small = rounded.float()
        if small.shape[-1] != SMALL:
            small = F.interpolate(small, (SMALL, SMALL), mode="area")
        return Measured(
            seen,
            summary.float().cpu().numpy(),
            labels.cpu().numpy(),
            small.round().byte().flatten(1).cpu().numpy(),
            rounded[:SHOWN].permute(0, 2, 3, 1).cpu().numpy(),
            tokens,
            seconds,
        )

    def _reconstructed(self, images: Tensor) -> Tensor:
        # As the generator's codes are painted: random order with the recovered source.
        encoded = self.maker.tokenizer.encode(
            images, self.maker.sampler.keep or self.maker.tokenizer.grid_tokens
        )
        if self.recipe.generator.model.kind == "random_order":
            return self.maker.pictures(encoded.indices)
        return self.maker.tokenizer.decode(encoded)

    def _by_position(self, ids: Tensor) -> Tensor:
        codes, seed = self.training_codes, self.maker.sampler.seed
        positions = np.arange(codes.shape[1])
        drawn = [
            codes[
                (uniforms(len(positions), seed, Stream.POSITION_BASELINE, sample) * len(codes)).astype(int),
                positions,
            ]
            for sample in ids.tolist()
        ]
        return torch.from_numpy(np.stack(drawn))


def training_codes(maker: Maker) -> np.ndarray:
    """Codes of up to `POSITION_ROWS` training views at the sampler's kept count: (R, N) by cell, (R, K) in random order."""
    recipe, keep = maker.recipe, maker.sampler.keep
    task = recipe.generator
    rows: list[Tensor] = []
    found = 0

    def take(indices: Tensor, assignment: Tensor) -> None:
        nonlocal found
        rows.append(indices if task.model.kind == "random_order" else indices.gather(1, assignment))
        found += len(indices)

    if task.codes:
        codes = open_codes(task.codes, recipe.data.train_split)
        for number in codes.groups_of(keep or max(codes.manifest.keeps)):
            if found < POSITION_ROWS:
                group = codes.group(number)
                take(torch.from_numpy(group.indices), torch.from_numpy(group.assignment))
    else:
        batches = real_batches(maker, recipe.data.train_split)
        for index in range(batches.num_batches):
            if found < POSITION_ROWS:
                images = to_unit_range(batches.batch(index), maker.device)["image"]
                encoded = maker.tokenizer.encode(images, keep or maker.tokenizer.grid_tokens)
                take(encoded.indices.cpu(), encoded.source.assignment.cpu())
    return torch.cat(rows).numpy()


def real_batches(maker: Maker, split: str) -> EvalBatches:
    """The fixed batches of real pictures of a split, up to the recipe's limits."""
    data, settings = maker.recipe.data, maker.recipe.evaluation
    limit = settings.probe_images if split == data.train_split else settings.images
    return EvalBatches(
        _opened(data.path, split, data.reading), data.views.image_size, settings.batch, limit=limit
    )


@lru_cache(maxsize=8)
def _opened(path: str, split: str, reading: Reading) -> Any:
    return open_dataset(path, split, reading)


def merged(parts: Sequence[Measured]) -> Measured:
    """Of all parts, in order."""
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return whole


def judge(
    sampler: Sampler,
    answers: Answers,
    *,
    run: str,
    scales: Sequence[float],
    say: Any = lambda text: None,
) -> tuple[GeneratorReport, dict[str, Measured]]:
    """(report, pictures by what they are) of a generator; `answers(jobs)` has the jobs of a `Judge` done.

    The point without guidance is measured whether or not it is asked for.
    """
    recipe = resolve(sampler.recipe)
    settings, data = recipe.generator.generation, recipe.data
    maker = Maker(sampler)
    points = tuple(sorted({1.0, *scales}))

    def gather(kind: Kind, count: int, **of: Any) -> Measured:
        jobs = [
            Job(kind, tuple(range(first, min(first + BATCHES_PER_JOB, count))), **of)
            for first in range(0, count, BATCHES_PER_JOB)
        ]
        return merged(list(answers(jobs)))

    say(f"reading real pictures of {data.path}")
    train = gather("real", real_batches(maker, data.train_split).num_batches, split=data.train_split)
    held_out = real_batches(maker, data.evaluation_split)
    real = gather("real", held_out.num_batches, split=data.evaluation_split)
    painted = gather("reconstructed", held_out.num_batches, split=data.evaluation_split)
    network = extractor(recipe.evaluation.extractor)
    keys = {name: score_name(network, name) for name in ("precision", "recall", "inception_score")}
    keys["frechet"] = distance_name(network, "generation")
    keys["spatial_frechet"] = distance_name(network, "generation", "sfd")
    known = Known(train, real, keys, neighbour_distances(painted.small, train.small))

    made = -(-settings.images // settings.batch)
    rows: list[dict[str, float]] = []
    pictures = {"train": train, "real": real, "reconstructed": painted}
    for scale in points:
        say(f"generating {settings.images} pictures at guidance scale {scale:g}")
        part = gather("generated", made, scale=scale)
        row = {"scale": scale, **known.row(part)}
        row["pictures_per_second"] = len(part.labels) / part.seconds  # of one worker
        row["tokens_per_second"] = part.tokens / part.seconds
        rows.append(row)
        pictures[f"{scale:g}"] = part
    references = {"real": known.row(real), "reconstructed": known.row(painted)}
    if settings.baselines:
        say("measuring the baselines")
        for kind in ("by_position", "untrained"):
            part = gather(kind, made)
            references[kind] = known.row(part)
            pictures[kind] = part
    protocol = {
        **sampler.protocol(),
        "keys": keys,
        "extractor": {"name": network.name, **network.identity},
        "images": settings.images,
        "reference": {"split": data.evaluation_split, "images": len(real.labels)},
        "data": data.path,
        "data_fingerprint": held_out.dataset.fingerprint,
        "background": held_out.dataset.background or DROPPED,
        "class_probe": {
            "kind": "logistic regression on the tokenizer's standardised summary, all tokens kept; C chosen on held-out training pictures",
            "train_images": len(train.labels),
            "real_top1": references["real"]["class_top1"],
        },
        "chance_top1": 100 * float(np.bincount(real.labels).max()) / len(real.labels),
        "neighbours": f"nearest of {len(train.labels)} training pictures and their mirror images, in pixels at {SMALL} px",
        "batch": settings.batch,
        "mergevq": mergevq.__version__,
    }
    report = GeneratorReport(run=run, rows=rows, references=references, protocol=protocol)
    return report, pictures


@dataclass(frozen=True)
class Known:
    """Real pictures, by which others are judged."""

    train: Measured
    real: Measured
    keys: dict[str, str]  # what the metrics are called
    painted_distances: np.ndarray  # of reconstructed held-out pictures to their nearest training pictures

    def row(self, part: Measured) -> dict[str, float]:
        """Metrics of a set of pictures whose labels are the classes that they ought to show."""
        probe = linear_probe(
            *(
                torch.from_numpy(array)
                for array in (self.train.summary, self.train.labels, part.summary, part.labels)
            )
        )
        seen, real = part.seen, self.real.seen
        assert seen is not None
        assert real is not None
        row = {
            self.keys["frechet"]: frechet_distance(real.pool, seen.pool),
            "class_top1": probe.top1,
            "class_top1_low": probe.interval[0],
            "class_top1_high": probe.interval[1],
        }
        if real.spatial is not None and seen.spatial is not None:
            row[self.keys["spatial_frechet"]] = frechet_distance(real.spatial, seen.spatial)
        if part is not self.real:
            found = precision_recall(torch.from_numpy(seen.features), torch.from_numpy(real.features))
            row |= {self.keys["precision"]: found.precision, self.keys["recall"]: found.recall}
        if seen.score is not None:
            row[self.keys["inception_score"]] = seen.score.compute().mean
        distances = neighbour_distances(part.small, self.train.small)
        row["neighbour_ratio"] = float(np.median(distances) / np.median(self.painted_distances))
        return row


def neighbour_distances(small: np.ndarray, train: np.ndarray) -> np.ndarray:
    """(B,) root mean square distance in grey levels to the nearest training picture or mirror image."""
    return nearest(small, train, 1)[0][:, 0]


def nearest(small: np.ndarray, train: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest of T training pictures, each or its mirror image, whichever is nearer: distances (B, count) in grey
    levels, and numbers (B, count), T and more for mirror images."""
    wanted, known = torch.from_numpy(small).float(), torch.from_numpy(train).float()
    mirrored = known.view(-1, 3, SMALL, SMALL).flip(-1).flatten(1)
    both = torch.stack([torch.cdist(wanted, known), torch.cdist(wanted, mirrored)])
    distances, is_mirrored = both.min(0)
    values, pictures = distances.topk(min(count, len(train)), largest=False)
    numbers = pictures + len(train) * is_mirrored.gather(1, pictures)
    return (values / wanted.shape[1] ** 0.5).numpy(), numbers.numpy()
