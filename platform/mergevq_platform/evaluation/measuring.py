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
import torch

import mergevq
from mergevq.config import to_tree
from mergevq.metrics import bits_per_image, distance_name, extractor, frechet_distance, score_name
from mergevq.metrics.features import Extractor
from mergevq.metrics.labelled import unfit_labels
from mergevq.metrics.lpips import LpipsDistance, LpipsFilesConfig
from mergevq.metrics.manifold import K as NEIGHBOURHOOD
from mergevq.metrics.pixels import WINDOW
from mergevq.metrics.sgd_probe import PUBLISHED
from mergevq_platform.curves import Curve
from mergevq_platform.data import BadImage, EvalBatches
from mergevq_platform.data.parquet.background import DROPPED
from mergevq_platform.data.views import RESIZING
from mergevq_platform.distributed.ordered_map import Share
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
from mergevq_platform.recipe import ResolvedRecipe, parse_resolved
from mergevq_platform.seen import SPLITS, Seen

BATCHES_PER_JOB = 4  # at least
JOBS_PER_PASS = 64  # about, of a large split: an answer may be 100 MB
KNN_QUERIES = 4096  # test features of one share of the nearest neighbours, up to
KNN_SHARES = 8  # shares, up to
FEATURES = ("cls", "mean")
PARTS = ("train", "test")  # what probes learn from, and what is evaluated
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
    lacking: dict[str, str] = field(default_factory=dict)  # what the data do not allow, and why
    bad: dict[str, dict[int, str]] = field(default_factory=dict)  # split -> row left out -> why
    unlabelled: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(PARTS, 0)
    )  # of each part's images

    def curve(
        self,
        keeps: Sequence[int],
        *,
        step: int | None,
        run: str,
        suites: Sequence[Suite] = SUITES,
        say: Callable[[str], None] = lambda text: None,
    ) -> Curve:
        """Rows for every kept count, ascending; `findings` is filled on the way.

        What the data do not allow is left out, and the protocol says so: of images without labels there is no probe, an
        image that cannot be decoded is none of those measured.
        """
        grid = self.recipe.tokenizer.model.grid_tokens
        rows = []
        for keep in sorted(keeps):
            say(f"measuring {keep} kept tokens of {grid}")
            row = {"keep": float(keep), "merge_ratio": 1 - keep / grid}
            if "reconstruction" in suites:
                row |= self.reconstruction(keep)
            if "representation" in suites:
                row |= self.representation(keep)
            rows.append(self._finite(row))
        protocol = self.protocol(step, suites)
        if "majority_top1" in rows[0]:
            protocol["majority_top1"] = rows[0]["majority_top1"]
        for part, rows_left_out in self.bad.items():
            count = len(rows_left_out)
            say(
                f"{count} image{'s' * (count > 1)} of '{part}' left out: {next(iter(rows_left_out.values()))}"
            )
        return Curve(run=run, rows=rows, protocol=protocol)

    @cached_property
    def recipe(self) -> ResolvedRecipe:
        """The recipe whose data and protocol are used."""
        return parse_resolved(self.subject.recipe)

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
        if part.ssim is None:
            self.lacking["SSIM"] = f"images of {self.splits['test'].size} px, under its window of {WINDOW}"
        row |= part.psnr.compute() | (part.ssim.compute() if part.ssim else {}) | part.codes.compute()
        for optional in (part.ms_ssim, part.lpips):
            row |= optional.compute() if optional is not None else {}
        row |= bits_per_image(
            keep,
            model.grid_tokens,
            code_bits=math.log2(model.quantizer.vocabulary),
            entropy_bits=row["code_entropy_bits"],
        )
        self.findings.each_psnr[keep] = part.each_psnr
        self.findings.code_counts[keep] = part.codes.checked().numpy()
        if part.recovery.count:
            if self.reference.pool.count > 1:
                row[f"{frechet}_recovered"] = frechet_distance(self.reference.pool, part.recovered)
            row["psnr_recovered"] = part.psnr_recovered.compute()["psnr"]
            row |= part.recovery.compute()
        return row

    def _likeness(self, painted: Seen, key: dict[str, Any]) -> dict[str, float]:
        real, names = self.reference, likeness_names(self.network)
        row: dict[str, float] = {}
        if real.pool.count > 1:
            row[names["frechet"]] = frechet_distance(real.pool, painted.pool)
            if real.spatial is not None and painted.spatial is not None:
                row[names["spatial_frechet"]] = frechet_distance(real.spatial, painted.spatial)
        else:
            self.lacking["Fréchet distance"] = "one image, which has no covariance"
        if painted.score is not None:
            row[names["inception_score"]] = painted.score.compute().mean
        if len(real.features) > NEIGHBOURHOOD:
            job = ManifoldJob(painted.features, real.features)
            found = self._through({"kind": "manifold", "of": key, "k": NEIGHBOURHOOD}, [job])
            row |= {names[name]: value for name, value in found.items()}
        else:
            self.lacking["precision and recall"] = (
                f"{len(real.features)} images, which lack {NEIGHBOURHOOD} neighbours"
            )
        return row

    def representation(self, keep: int) -> dict[str, float]:
        """Probes and nearest neighbours of every feature at a kept count, with their baselines.

        Images without a label are left out; empty where the others make no probe.
        """
        if not self._labelled():
            return {}
        own = {name: name for name in FEATURES}
        found = self._features("features", keep)
        labels = {part: found[part]["label"] for part in PARTS}
        data = self.recipe.data
        reason = unfit_labels(
            *map(torch.from_numpy, labels.values()), names=(data.train_split, data.evaluation_split)
        )
        if reason is not None:
            self.lacking["probe"] = reason
            return {}
        self.unlabelled = {part: int((y < 0).sum()) for part, y in labels.items()}
        row = self._probes("features", keep, own, found)
        for protocol in self.recipe.evaluation.probes:
            row |= averaged(
                [
                    self._probes("features", keep, own, found, protocol, order=seed)
                    for seed in range(self.seeds)
                ]
            )
        if self.recipe.evaluation.untrained_baseline:
            suffixes = {"cls": "untrained", "mean": "untrained_mean"}
            row |= averaged(
                [
                    self._probes(
                        "untrained", keep, suffixes, self._features("untrained", keep, seed), seed=seed
                    )
                    for seed in range(self.seeds)
                ]
            )
        return row

    def _labelled(self) -> bool:
        without = [batches.dataset.split for batches in self.splits.values() if not batches.dataset.labelled]
        if without:
            self.lacking["probe"] = "no labels" if len(without) > 1 else f"no labels in '{without[0]}'"
        return "probe" not in self.lacking

    def _features(self, kind: Any, keep: int, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
        return {part: self._pass(kind, part, keep, seed) for part in PARTS}

    def _finite(self, row: dict[str, float]) -> dict[str, float]:
        # What is no number has no place in a table, a figure or JSON: it is left out, and said.
        for key in [key for key, value in row.items() if not math.isfinite(value)]:
            self.lacking[key] = f"{row.pop(key)} at {row['keep']:.0f} kept tokens"
        return row

    def _probes(
        self,
        kind: Any,
        keep: int,
        suffixes: dict[str, str],
        found: dict[str, dict[str, np.ndarray]],
        protocol: str = "exact",
        *,
        seed: int = 0,
        order: int = 0,
    ) -> dict[str, float]:
        train, test = (found[part] for part in PARTS)
        jobs = [
            ProbeJob(suffix, train[name], train["label"], test[name], test["label"], protocol, order)
            for name, suffix in suffixes.items()
        ]
        if kind == "features":
            queries = test["cls"][:QUERIES]
            self.findings.neighbours, self.findings.neighbours_keep = nearest(train["cls"], queries), keep
        learned_from = [self._key(kind, part, keep, seed) for part in PARTS]
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
        try:
            return self._whole_pass(kind, part, keep, seed)
        except BadImage:
            self._leave_out_bad(part)
            return self._whole_pass(kind, part, keep, seed)

    def _leave_out_bad(self, part: str) -> None:
        found = self.splits[part].bad_rows()
        split = self.splits[part].dataset.split
        self.bad[split] = self.bad.get(split, {}) | found
        self.splits[part] = self.splits[part].without(found)

    def _whole_pass(self, kind: Any, part: str, keep: int, seed: int = 0) -> Any:
        batches = self.splits[part]
        size = max(BATCHES_PER_JOB, math.ceil(batches.num_batches / JOBS_PER_PASS))
        every = range(batches.num_batches)
        split = batches.dataset.split
        jobs = [
            Job(kind, split, keep, tuple(every[start : start + size]), seed, batches.left_out)
            for start in every[::size]
        ]
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
        if batches.left_out:
            key["left_out"] = list(batches.left_out)
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
            "psnr": "an exact image counts as one with a single value off by one level",
            "inception_score": f"{SPLITS} splits, shuffled",
            "precision_recall": f"{NEIGHBOURHOOD} nearest neighbours, the first {MANIFOLD_PICTURES:,} pictures at most",
            "batch": settings.batch,
            "mergevq": mergevq.__version__,
            "caveat": CAVEATS.get(recipe.tokenizer.losses.alignment.kind, ""),
        }
        if self.lacking:
            protocol["lacking"] = dict(self.lacking)
        if self.bad:
            protocol["left_out"] = {split: sorted(rows) for split, rows in self.bad.items()}
        if "representation" in suites and "probe" not in self.lacking:
            protocol["probe"] = {
                "kind": "logistic regression on standardised features, C chosen on held-out training pictures",
                "train_images": self.splits["train"].images - self.unlabelled["train"],
                **({"unlabelled": self.unlabelled} if any(self.unlabelled.values()) else {}),
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
def lpips_identity(files: LpipsFilesConfig) -> dict[str, Any]:
    """What numbers of LPIPS with these files must share to be compared."""
    return LpipsDistance(files).identity


def nearest(bank: np.ndarray, queries: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """The rows (queries, k) of the bank (M, D) whose features have the largest cosine with each query's, nearest first."""
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (queries, bank))
    return np.argsort(-(a @ b.T), axis=1, kind="stable")[:, :k]


def majority_top1(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Top-1 (percent) of always answering the training split's most frequent class; negative labels are none."""
    train_labels, test_labels = train_labels[train_labels >= 0], test_labels[test_labels >= 0]
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
