"""Judging a generator: over guidance scales, how far its pictures are from real ones, and whether their class is recognised.

Beside every number stand its baselines (codes drawn position by position from the training codes, the generator before its first
step) and its ceiling (reconstructions of real pictures by the same tokenizer). The work is cut into jobs of whole batches; answers
are merged in job order, so that any number of workers gives one result.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
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
    precision_recall,
    score_name,
    to_uint8,
)
from mergevq.metrics.labelled import unfit_labels
from mergevq.metrics.manifold import K as NEIGHBOURHOOD
from mergevq.metrics.probe import FittedProbe, fit_probe
from mergevq.rng import Stream, uniforms
from mergevq_platform.codes import open_codes
from mergevq_platform.data import BadImage, EvalBatches, Reading, open_dataset, to_unit_range
from mergevq_platform.data.parquet.background import DROPPED
from mergevq_platform.distributed.ordered_map import Answers
from mergevq_platform.generation.maker import Maker, Sampler
from mergevq_platform.generator_report import GeneratorReport
from mergevq_platform.recipe import parse_resolved
from mergevq_platform.seen import Seen, see, together

BATCHES_PER_JOB = 2
SMALL = 32  # pictures are compared with their neighbours at this many pixels a side
POSITION_ROWS = 4096  # training views whose codes the position baseline draws from
BLOCK = 4096  # pictures whose distances to as many others are taken at once
CLASS_PROBE = "logistic regression on the tokenizer's standardised summary, all tokens kept; C chosen on held-out training pictures"
SHOWN = 48  # pictures of each point that the figures may show

Kind = Literal["train", "real", "reconstructed", "generated", "by_position", "untrained"]


class Job(NamedTuple):
    """Some batches: of real pictures of `split`, or of pictures made at `scale`."""

    kind: Kind
    batches: tuple[int, ...]
    split: str = ""
    scale: float = 1.0
    left_out: tuple[int, ...] = ()  # rows of the split, of images that cannot be decoded


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


class Judge:
    """One process's models and data; answers jobs."""

    def __init__(self, sampler: Sampler) -> None:
        self.maker = Maker(sampler)
        self.recipe = parse_resolved(sampler.recipe)
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
        if job.kind in ("train", "real", "reconstructed"):
            batches = real_batches(self.maker, job.split, job.left_out)
            batch = to_unit_range(batches.batch(index), self.device)
            images, labels = batch["image"], batch["label"]
            if job.kind == "reconstructed":
                images = self._reconstructed(images)
            if job.kind == "train":
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
            if found < POSITION_ROWS and (batch := batches.readable(index)) is not None:
                images = to_unit_range(batch, maker.device)["image"]
                encoded = maker.tokenizer.encode(images, keep or maker.tokenizer.grid_tokens)
                take(encoded.indices.cpu(), encoded.source.assignment.cpu())
    return torch.cat(rows).numpy()


def real_batches(maker: Maker, split: str, left_out: Collection[int] = ()) -> EvalBatches:
    """The fixed batches of real pictures of a split, up to the recipe's limits, without the rows `left_out`."""
    data, settings = maker.recipe.data, maker.recipe.evaluation
    limit = settings.probe_images if split == data.train_split else settings.images
    opened = _opened(data.path, split, data.reading)
    return EvalBatches(opened, data.views.image_size, settings.batch, limit=limit, left_out=left_out)


@lru_cache(maxsize=8)
def _opened(path: str, split: str, reading: Reading) -> Any:
    return open_dataset(path, split, reading)


def merged(parts: Sequence[Measured]) -> Measured:
    """Of all parts, in order; what they hold is copied once."""
    seen = [part.seen for part in parts if part.seen is not None]
    first = list(islice((picture for part in parts for picture in part.first), SHOWN))
    return Measured(
        seen=together(seen) if seen else None,
        summary=np.concatenate([part.summary for part in parts]),
        labels=np.concatenate([part.labels for part in parts]),
        small=np.concatenate([part.small for part in parts]),
        first=np.stack(first),
        tokens=sum(part.tokens for part in parts),
        seconds=sum(part.seconds for part in parts),
    )


def judge(
    sampler: Sampler,
    answers: Answers,
    *,
    run: str,
    scales: Sequence[float],
    say: Any = lambda text: None,
) -> tuple[GeneratorReport, dict[str, Measured]]:
    """(report, pictures by what they are) of a generator; `answers(jobs)` has the jobs of a `Judge` done.

    The point without guidance is measured whether or not it is asked for. What the data do not allow is left out, and the
    protocol says why: without labels no class is recognised, an image that cannot be decoded is none of the real ones.
    """
    recipe = parse_resolved(sampler.recipe)
    settings, data = recipe.generator.generation, recipe.data
    maker = Maker(sampler)
    points = tuple(sorted({1.0, *scales}))

    bad: dict[str, tuple[int, ...]] = {}

    def gather(kind: Kind, count: int, **of: Any) -> Measured:
        jobs = [
            Job(kind, tuple(range(first, min(first + BATCHES_PER_JOB, count))), **of)
            for first in range(0, count, BATCHES_PER_JOB)
        ]
        return merged(list(answers(jobs)))

    def gather_real(kind: Kind, split: str) -> Measured:
        batches = real_batches(maker, split, bad.get(split, ()))
        try:
            return gather(kind, batches.num_batches, split=split, left_out=batches.left_out)
        except BadImage as error:
            found = batches.bad_rows()
            batches = batches.without(found)
            bad[split] = batches.left_out
            say(f"{len(bad[split])} images of '{split}' left out: {error}")
            return gather(kind, batches.num_batches, split=split, left_out=batches.left_out)

    say(f"reading real pictures of {data.path}")
    train = gather_real("train", data.train_split)
    held_out = real_batches(maker, data.evaluation_split)
    real = gather_real("real", data.evaluation_split)
    painted = gather_real("reconstructed", data.evaluation_split)
    network = extractor(recipe.evaluation.extractor)
    keys = {name: score_name(network, name) for name in ("precision", "recall", "inception_score")}
    keys["frechet"] = distance_name(network, "generation")
    keys["spatial_frechet"] = distance_name(network, "generation", "sfd")
    known = Known(train, real, keys, float(np.median(neighbour_distances(painted.small, train.small))))
    known.find_lacking((data.train_split, data.evaluation_split))

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
        "neighbours": f"nearest of {len(train.labels)} training pictures and their mirror images, in pixels at {SMALL} px",
        "batch": settings.batch,
        "mergevq": mergevq.__version__,
    }
    if known.probe is not None:
        of_class = real.labels[real.labels >= 0]
        protocol |= {
            "class_probe": {
                "kind": CLASS_PROBE,
                "train_images": known.probe.train_images,
                "real_top1": references["real"]["class_top1"],
            },
            "chance_top1": 100 * float(np.bincount(of_class).max()) / len(of_class),
        }
    if known.lacking:
        protocol["lacking"] = known.lacking
    if bad:
        protocol["left_out"] = {split: list(rows) for split, rows in bad.items()}
    report = GeneratorReport(run=run, rows=rows, references=references, protocol=protocol)
    return report, pictures


@dataclass
class Known:
    """Real pictures, by which others are judged."""

    train: Measured
    real: Measured
    keys: dict[str, str]  # what the metrics are called
    painted_distance: float  # median of reconstructed held-out pictures to their nearest training pictures
    probe: FittedProbe | None = None
    lacking: dict[str, str] = field(default_factory=dict)  # what the data do not allow, and why

    def find_lacking(self, splits: tuple[str, str]) -> None:
        """Train the probe, once for all that is judged by it; or note why there is none, and what else there cannot be."""
        train, real = torch.from_numpy(self.train.labels), torch.from_numpy(self.real.labels)
        if reason := unfit_labels(train, real, names=splits):
            self.lacking["class"] = reason
        else:
            self.probe = fit_probe(torch.from_numpy(self.train.summary), train)
        if len(real) < 2:
            self.lacking["Fréchet distance"] = f"one image in '{splits[1]}', which has no covariance"
        if len(real) <= NEIGHBOURHOOD:
            self.lacking["precision and recall"] = (
                f"{len(real)} images in '{splits[1]}', which lack neighbours"
            )
        if not self.painted_distance:
            self.lacking["distance to neighbours"] = "reconstructions are copies of training images"

    def row(self, part: Measured) -> dict[str, float]:
        """Metrics of a set of pictures whose labels are the classes that they ought to show."""
        seen, real = part.seen, self.real.seen
        assert seen is not None
        assert real is not None
        row: dict[str, float] = {}
        fewest = min(seen.pool.count, real.pool.count)
        if fewest > 1:
            row[self.keys["frechet"]] = frechet_distance(real.pool, seen.pool)
        if self.probe is not None:
            found = self.probe.score(torch.from_numpy(part.summary), torch.from_numpy(part.labels))
            row |= {
                "class_top1": found.top1,
                "class_top1_low": found.interval[0],
                "class_top1_high": found.interval[1],
            }
        if fewest > 1 and real.spatial is not None and seen.spatial is not None:
            row[self.keys["spatial_frechet"]] = frechet_distance(real.spatial, seen.spatial)
        if part is not self.real and fewest > NEIGHBOURHOOD:
            manifold = precision_recall(torch.from_numpy(seen.features), torch.from_numpy(real.features))
            row |= {self.keys["precision"]: manifold.precision, self.keys["recall"]: manifold.recall}
        if seen.score is not None:
            row[self.keys["inception_score"]] = seen.score.compute().mean
        if self.painted_distance:
            distances = neighbour_distances(part.small, self.train.small)
            row["neighbour_ratio"] = float(np.median(distances) / self.painted_distance)
        return row


def neighbour_distances(small: np.ndarray, train: np.ndarray) -> np.ndarray:
    """(B,) root mean square distance in grey levels to the nearest training picture or mirror image."""
    return nearest(small, train, 1)[0][:, 0]


def nearest(small: np.ndarray, train: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest of T training pictures, each or its mirror image, whichever is nearer: distances (B, count) in grey
    levels, and numbers (B, count), T and more for mirror images. Compares `BLOCK` x `BLOCK` at a time."""
    rows = [_nearest_of(torch.from_numpy(part), torch.from_numpy(train), count) for part in _blocks(small)]
    distances, numbers = (torch.cat(parts).numpy() for parts in zip(*rows, strict=True))
    return distances / small.shape[1] ** 0.5, numbers


def _nearest_of(wanted: Tensor, train: Tensor, count: int) -> tuple[Tensor, Tensor]:
    wanted = wanted.float()
    best, numbers = wanted.new_empty(len(wanted), 0), torch.empty(len(wanted), 0, dtype=torch.int64)
    for first in range(0, len(train), BLOCK):
        known = train[first : first + BLOCK].float()
        mirrored = known.view(-1, 3, SMALL, SMALL).flip(-1).flatten(1)
        distances, is_mirrored = torch.stack([torch.cdist(wanted, known), torch.cdist(wanted, mirrored)]).min(
            0
        )
        values, pictures = distances.topk(min(count, len(known)), largest=False)
        found = first + pictures + len(train) * is_mirrored.gather(1, pictures)
        best, numbers = torch.cat([best, values], 1), torch.cat([numbers, found], 1)
        best, order = best.topk(min(count, best.shape[1]), largest=False)
        numbers = numbers.gather(1, order)
    return best, numbers


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[first : first + BLOCK] for first in range(0, len(rows), BLOCK))
