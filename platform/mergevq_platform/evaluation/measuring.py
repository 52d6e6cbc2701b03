"""Measuring the curve: for every kept count, what the tokenizer reconstructs and what its features know.

The work is cut into passes (all pictures of a split, of one kind, at one kept count), and passes into jobs of whole
evaluation batches (batch b is always samples [bB, (b+1)B)). A job's answer is a set of accumulators or features; the
driver merges them in job order, so that any number of workers gives one result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

import mergevq
from mergevq.config import to_tree
from mergevq.metrics import bits_per_picture, distance_name, extractor, frechet_distance, score_name
from mergevq.metrics.extractors import Extractor
from mergevq.metrics.lpips import LpipsDistance, LpipsFiles
from mergevq.metrics.manifold import K as NEIGHBOURHOOD
from mergevq.metrics.sgd_probe import PUBLISHED
from mergevq_platform.curves import Curve
from mergevq_platform.data import EvalBatches
from mergevq_platform.data.background import DROPPED
from mergevq_platform.data.views import RESIZING
from mergevq_platform.evaluation.answers import merge
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.evaluator import (
    MANIFOLD_PICTURES,
    Job,
    ManifoldJob,
    ProbeJob,
    knn_metrics,
)
from mergevq_platform.evaluation.subject import Subject, identity, split_batches, untrained_identity
from mergevq_platform.pool import Share
from mergevq_platform.recipe import Recipe, resolve
from mergevq_platform.seen import SPLITS, Seen

BATCHES_PER_JOB = 4  # at least
JOBS_PER_PASS = 64  # about, of a large split: an answer may be 100 MB
KNN_QUERIES = 4096  # test features of one share of the nearest neighbours, up to
KNN_SHARES = 8  # shares, up to
FEATURES = ("cls", "mean")
QUERIES, NEIGHBOURS = 8, 7  # pictures whose nearest training pictures are shown, and how many of these
CAVEATS = {
    "stand_in": "The alignment teacher is a stand-in that saw these labels: the probe measures distillation, not self-supervision.",
    "supervised": "Training used the labels: the probe measures supervised features, not self-supervision.",
}

Suite = Literal["reconstruction", "representation"]
SUITES: tuple[Suite, ...] = ("reconstruction", "representation")
Ask = Callable[[Sequence[Job | ProbeJob | ManifoldJob | Share[ProbeJob]]], Iterable[Any]]


def measure(
    subject: Subject,
    keeps: Sequence[int],
    answers: Ask,
    *,
    step: int | None,
    run: str,
    cache: Cache | None = None,
) -> Curve:
    """The curve of one tokenizer. `answers(jobs)` yields the answers in order (here, or on many workers)."""
    return Measurement(subject, answers, cache).curve(keeps, step=step, run=run)


@dataclass
class Findings:
    """What figures show beside the curve: single pictures and codes."""

    each_psnr: dict[int, np.ndarray] = field(default_factory=dict)  # kept tokens -> (pictures,) dB
    code_counts: dict[int, np.ndarray] = field(default_factory=dict)  # kept tokens -> (V,) how often
    neighbours: np.ndarray | None = None  # (queries, k) rows of the train split, nearest first
    neighbours_keep: int = 0


@dataclass
class Measurement:
    """One tokenizer under measurement: its pictures, and who answers.

    `seeds` initialisations of the untrained encoder are probed; its numbers are then means, with a deviation beside
    them. What `cache` holds is not measured again.
    """

    subject: Subject
    ask: Ask
    cache: Cache | None = None
    seeds: int = 1
    findings: Findings = field(default_factory=Findings)

    def curve(
        self,
        keeps: Sequence[int],
        *,
        step: int | None,
        run: str,
        suites: Sequence[Suite] = SUITES,
        say: Callable[[str], None] = lambda text: None,
    ) -> Curve:
        """Rows for every kept count, ascending; `findings` is filled on the way."""
        grid = self.recipe.tokenizer.model.grid_tokens
        rows = []
        for keep in sorted(keeps):
            say(f"measuring {keep} kept tokens of {grid}")
            row = {"keep": float(keep), "merge_ratio": 1 - keep / grid}
            if "reconstruction" in suites:
                row |= self.reconstruction(keep)
            if "representation" in suites and self.labelled:
                row |= self.representation(keep)
            rows.append(row)
        protocol = self.protocol(step, suites)
        if "probe" in protocol:
            protocol["majority_top1"] = rows[0]["majority_top1"]
        return Curve(run=run, rows=rows, protocol=protocol)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe whose data and protocol are used."""
        return resolve(self.subject.recipe)

    @cached_property
    def network(self) -> Extractor:
        """The network of the Fréchet distance."""
        return extractor(self.recipe.evaluation.extractor)

    @cached_property
    def splits(self) -> dict[str, EvalBatches]:
        """The batches that are evaluated (`test`) and that probes learn from (`train`)."""
        data = self.recipe.data
        names = {"test": data.evaluation_split, "train": data.train_split}
        return {part: split_batches(self.recipe, self.subject.data, name) for part, name in names.items()}

    @property
    def labelled(self) -> bool:
        """Whether a probe is possible."""
        return all(batches.dataset.labelled for batches in self.splits.values())

    @cached_property
    def weights(self) -> dict[str, str]:
        """What the tokenizer's answers depend on beside the pictures."""
        return identity(self.subject)

    @cached_property
    def reference(self) -> Seen:
        """What the pictures themselves are."""
        return self._pass("reference", "test", 0)

    def reconstruction(self, keep: int) -> dict[str, float]:
        """Likeness of the whole sets, pixels, codes and recovery at a kept count."""
        part = self._pass("reconstruction", "test", keep)
        frechet, model = distance_name(self.network, "reconstruction"), self.recipe.tokenizer.model
        row = self._likeness(part.true, self._key("reconstruction", "test", keep, 0))
        row |= part.psnr.compute() | part.ssim.compute() | part.codes.compute()
        for optional in (part.ms_ssim, part.lpips):
            row |= optional.compute() if optional is not None else {}
        row |= bits_per_picture(
            keep,
            model.grid_tokens,
            code_bits=math.log2(model.quantizer.vocabulary),
            entropy_bits=row["code_entropy_bits"],
        )
        self.findings.each_psnr[keep] = part.each_psnr
        self.findings.code_counts[keep] = part.codes.checked().numpy()
        if part.recovery.count:
            row[f"{frechet}_recovered"] = frechet_distance(self.reference.pool, part.recovered)
            row["psnr_recovered"] = part.psnr_recovered.compute()["psnr"]
            row |= part.recovery.compute()
        return row

    def _likeness(self, painted: Seen, key: dict[str, Any]) -> dict[str, float]:
        real, names = self.reference, likeness_names(self.network)
        row = {names["frechet"]: frechet_distance(real.pool, painted.pool)}
        if real.spatial is not None and painted.spatial is not None:
            row[names["spatial_frechet"]] = frechet_distance(real.spatial, painted.spatial)
        if painted.score is not None:
            row[names["inception_score"]] = painted.score.compute().mean
        if len(real.features) > NEIGHBOURHOOD:
            job = ManifoldJob(painted.features, real.features)
            found = self._through({"kind": "manifold", "of": key, "k": NEIGHBOURHOOD}, [job])
            row |= {names[name]: value for name, value in found.items()}
        return row

    def representation(self, keep: int) -> dict[str, float]:
        """Probes and nearest neighbours of every feature at a kept count, with their baselines."""
        own = {name: name for name in FEATURES}
        row = self._probes("features", keep, own)
        for protocol in self.recipe.evaluation.probes:
            row |= averaged(
                [self._probes("features", keep, own, protocol, order=seed) for seed in range(self.seeds)]
            )
        if self.recipe.evaluation.untrained_baseline:
            suffixes = {"cls": "untrained", "mean": "untrained_mean"}
            row |= averaged(
                [self._probes("untrained", keep, suffixes, seed=seed) for seed in range(self.seeds)]
            )
        return row

    def _probes(
        self,
        kind: Any,
        keep: int,
        suffixes: dict[str, str],
        protocol: str = "exact",
        *,
        seed: int = 0,
        order: int = 0,
    ) -> dict[str, float]:
        train, test = (self._pass(kind, part, keep, seed) for part in ("train", "test"))
        jobs = [
            ProbeJob(suffix, train[name], train["label"], test[name], test["label"], protocol, order)
            for name, suffix in suffixes.items()
        ]
        if kind == "features":
            queries = test["cls"][:QUERIES]
            self.findings.neighbours, self.findings.neighbours_keep = nearest(train["cls"], queries), keep
        learned_from = [self._key(kind, part, keep, seed) for part in ("train", "test")]
        key = {"kind": "probes", "suffixes": suffixes, "of": learned_from, "protocol": [protocol, order]}
        row = self._through(key, jobs) | {"majority_top1": majority_top1(train["label"], test["label"])}
        if protocol != "exact":
            return row
        shares = min(KNN_SHARES, math.ceil(len(test["label"]) / KNN_QUERIES))
        for job in jobs:
            votes = self._through(
                {"kind": "knn", "suffix": job.suffix, "of": learned_from},
                [Share(job, number, shares) for number in range(shares)],
            )
            row |= knn_metrics(votes, job.suffix)
        return row

    def _pass(self, kind: Any, part: str, keep: int, seed: int = 0) -> Any:
        batches = self.splits[part]
        size = max(BATCHES_PER_JOB, math.ceil(batches.num_batches / JOBS_PER_PASS))
        every = range(batches.num_batches)
        split = batches.dataset.split
        jobs = [Job(kind, split, keep, tuple(every[start : start + size]), seed) for start in every[::size]]
        return self._through(self._key(kind, part, keep, seed), jobs)

    def _through(self, key: dict[str, Any], jobs: list[Any]) -> Any:
        return merge(self.ask(jobs)) if self.cache is None else self.cache.through(key, jobs, self.ask)

    def _key(self, kind: str, part: str, keep: int, seed: int) -> dict[str, Any]:
        batches = self.splits[part]
        key: dict[str, Any] = {
            "kind": kind,
            "data": batches.dataset.fingerprint,
            "images": batches.images,
            "batch": batches.batch_size,
            "size": batches.size,
        }
        if batches.dataset.background is not None:  # of sets packed before there was one the key is as it was
            key["background"] = batches.dataset.background
        if kind in ("reference", "reconstruction"):
            key["extractor"] = {"name": self.network.name, **self.network.identity}
        if kind == "reconstruction" and self.recipe.evaluation.lpips:
            key["lpips"] = lpips_identity(self.recipe.evaluation.lpips)
        if kind == "untrained":
            key |= {"keep": keep, **untrained_identity(self.recipe, seed)}
        elif kind != "reference":
            key |= {"keep": keep, **self.weights}
        return key

    def protocol(self, step: int | None, suites: Sequence[Suite]) -> dict[str, Any]:
        """What the numbers mean: data, counts, extractor, weights, probe."""
        recipe, settings = self.recipe, self.recipe.evaluation
        evaluated = self.splits["test"]
        protocol: dict[str, Any] = {
            "suites": list(suites),
            "frechet_key": distance_name(self.network, "reconstruction"),
            "keys": likeness_names(self.network),
            "extractor": {"name": self.network.name, **self.network.identity},
            **({"lpips": lpips_identity(settings.lpips)} if settings.lpips else {}),
            "images": evaluated.images,
            "split": recipe.data.evaluation_split,
            "data": self.subject.data,
            "data_fingerprint": evaluated.dataset.fingerprint,
            "preprocessing": f"shorter side to {recipe.data.views.image_size} (bicubic), centre crop; reconstructions rounded to uint8",
            "background": evaluated.dataset.background or DROPPED,
            "resizing": RESIZING,
            "ema": step is not None,
            "step": step,
            "checkpoint": self.subject.checkpoint,
            **self.weights,
            "inception_score": f"{SPLITS} splits, shuffled",
            "precision_recall": f"{NEIGHBOURHOOD} nearest neighbours, the first {MANIFOLD_PICTURES:,} pictures at most",
            "batch": settings.batch,
            "mergevq": mergevq.__version__,
            "caveat": CAVEATS.get(recipe.tokenizer.losses.alignment.kind, ""),
        }
        if "representation" in suites and self.labelled:
            protocol["probe"] = {
                "kind": "logistic regression on standardised features, C chosen on held-out training pictures",
                "train_images": self.splits["train"].images,
                "features": {
                    "cls": "summary token",
                    "mean": "kept tokens before quantization, averaged over grid cells",
                },
                "tokens": "as many as the row keeps, in training and test pictures alike",
                "published": {name: to_tree(PUBLISHED[name]) for name in settings.probes},
                "untrained_seeds": self.seeds if settings.untrained_baseline else 0,
            }
        return protocol


def likeness_names(network: Extractor) -> dict[str, str]:
    """What the metrics of reconstructions as a set are called with the network's features."""
    return {
        "frechet": distance_name(network, "reconstruction"),
        "spatial_frechet": distance_name(network, "reconstruction", "sfd"),
        **{
            name: score_name(network, name, "reconstruction")
            for name in ("inception_score", "precision", "recall")
        },
    }


@lru_cache(maxsize=4)
def lpips_identity(files: LpipsFiles) -> dict[str, Any]:
    """What numbers of LPIPS with these files must share to be compared."""
    return LpipsDistance(files).identity


def nearest(bank: np.ndarray, queries: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """The rows (queries, k) of the bank (M, D) whose features have the largest cosine with each query's, nearest first."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (queries, bank))
    return np.argsort(-(a @ b.T), axis=1, kind="stable")[:, :k]


def majority_top1(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Top-1 (percent) of always answering the training split's most frequent class."""
    return 100 * float(np.mean(test_labels == np.bincount(train_labels).argmax()))


def averaged(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every number over repetitions; of two and more also the deviation (n - 1), as `<key>_std`."""
    found = {}
    for key in rows[0]:
        values = [row[key] for row in rows]
        found[key] = float(np.mean(values))
        if len(values) > 1 and not key.endswith(("_low", "_high", "majority_top1")):
            found[f"{key}_std"] = float(np.std(values, ddof=1))
    return found
