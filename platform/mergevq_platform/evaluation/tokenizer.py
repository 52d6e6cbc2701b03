"""The evaluation of a tokenizer: at every kept count, how well it reconstructs, and what its features know.

The work is cut into passes (all images of a split, of one kind, at one kept count), and passes into jobs of whole batches: see
`passes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

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
from mergevq_platform.data import EvalBatches
from mergevq_platform.data.parquet.background import DROPPED
from mergevq_platform.data.views import RESIZING, evaluation_view_text
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.manifold import precision_recall
from mergevq_platform.evaluation.options import SUITES, Suite
from mergevq_platform.evaluation.passes import Passes, jobs_of_batches
from mergevq_platform.evaluation.probing import LabelledFeatures, Probes
from mergevq_platform.evaluation.spec import (
    EvaluationSpec,
    batches_key,
    identity,
    split_batches,
    untrained_identity,
)
from mergevq_platform.evaluation.splits import EvaluatedSplits
from mergevq_platform.evaluation.statistics import SPLITS, ImageSetStatistics
from mergevq_platform.evaluation.tokenizer_figures import write_figures
from mergevq_platform.evaluation.tokenizer_results import ReconstructionResult, TokenizerFindings
from mergevq_platform.evaluation.tokenizer_worker import MANIFOLD_IMAGES, PassKind, TokenizerJob
from mergevq_platform.recipe import ResolvedRecipe

BATCHES_PER_JOB = 4  # at least
FEATURES = ("cls", "mean")
PARTS = ("train", "test")  # what probes learn from, and what is evaluated
QUERIES, NEIGHBOURS = 8, 7  # images whose nearest training images are shown, and how many of these
CAVEATS = {
    "stand_in": "The alignment teacher is a stand-in that saw these labels: the probe measures distillation, not self-supervision.",
    "supervised": "Training used the labels: the probe measures supervised features, not self-supervision.",
}

Features = dict[str, np.ndarray]


@dataclass
class TokenizerEvaluator:
    """The evaluation of one tokenizer, whose passes workers do.

    `seeds` initialisations of the untrained encoder are probed; its numbers are then means, with a deviation beside them.
    """

    spec: EvaluationSpec
    passes: Passes
    keeps: Sequence[int]
    suites: Sequence[Suite] = SUITES
    seeds: int = 1
    step: int | None = None  # of the checkpoint; none: the weights are as someone saved them
    say: Callable[[str], None] = lambda text: None
    findings: TokenizerFindings = field(default_factory=TokenizerFindings)
    lacking: dict[str, str] = field(default_factory=dict)  # what the data do not allow, and why
    unlabelled: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(PARTS, 0)
    )  # of each part's images

    def report(self, run: str) -> Curve:
        """The curve: rows for every kept count, ascending; `findings` is filled on the way.

        What the data do not allow is left out, and the protocol says so: of images without labels there is no probe, an
        image that cannot be decoded is none of those measured.
        """
        grid = self.recipe.tokenizer.model.grid_tokens
        rows = []
        for keep in sorted(self.keeps):
            self.say(f"measuring {keep} kept tokens of {grid}")
            row = {"keep": float(keep), "merge_ratio": 1 - keep / grid}
            if "reconstruction" in self.suites:
                row |= self.reconstruction(keep)
            if "representation" in self.suites:
                row |= self.representation(keep)
            rows.append(self._finite(row))
        protocol = self.protocol()
        if "majority_top1" in rows[0]:
            protocol["majority_top1"] = rows[0]["majority_top1"]
        return Curve(run=run, rows=rows, protocol=protocol)

    def write_figures(self, report: Curve, folder: Path) -> dict[str, Path]:
        """The trade-off, image grids and single findings, as files in `folder`, by name."""
        return write_figures(report, self.spec, self.findings, folder)

    @property
    def recipe(self) -> ResolvedRecipe:
        """The recipe whose data and protocol are used."""
        return self.spec.recipe

    @cached_property
    def network(self) -> Extractor:
        """The network of the Fréchet distance."""
        return extractor(self.recipe.evaluation.extractor)

    @cached_property
    def splits(self) -> EvaluatedSplits:
        """The batches that are evaluated (`test`) and that probes learn from (`train`)."""
        data = self.recipe.data
        names = {"test": data.evaluation_split, "train": data.train_split}
        opened = {part: split_batches(self.recipe, self.spec.data, name) for part, name in names.items()}
        return EvaluatedSplits(opened, self.say)

    @cached_property
    def probes(self) -> Probes:
        """The probes, each fitted once."""
        return Probes(self.passes)

    @cached_property
    def weights(self) -> dict[str, str]:
        """What the tokenizer's results depend on beside the images."""
        return identity(self.spec)

    @cached_property
    def reference(self) -> ImageSetStatistics:
        """The statistics of the images themselves."""
        return self._pass("reference", "test", 0)

    def reconstruction(self, keep: int) -> dict[str, float]:
        """Likeness of the whole sets, pixels, codes and recovery at a kept count."""
        part: ReconstructionResult = self._pass("reconstruction", "test", keep)
        assert part.codes is not None
        frechet, model = distance_name(self.network, "reconstruction"), self.recipe.tokenizer.model
        row = self._likeness(part.true, keep)
        if part.ssim is None:
            self.lacking["SSIM"] = (
                f"images of {self.splits.batches['test'].size} px, under its window of {WINDOW}"
            )
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
        if (counts := part.codes.checked()) is not None:
            self.findings.code_counts[keep] = counts.numpy()
        if part.recovery.count:
            if self.reference.pool.count > 1:
                row[f"{frechet}_recovered"] = frechet_distance(self.reference.pool, part.recovered)
            row["psnr_recovered"] = part.psnr_recovered.compute()["psnr"]
            row |= part.recovery.compute()
        return row

    def _likeness(self, decoded: ImageSetStatistics, keep: int) -> dict[str, float]:
        real, names = self.reference, likeness_names(self.network)
        row: dict[str, float] = {}
        if real.pool.count > 1:
            row[names["frechet"]] = frechet_distance(real.pool, decoded.pool)
            if real.spatial is not None and decoded.spatial is not None:
                row[names["spatial_frechet"]] = frechet_distance(real.spatial, decoded.spatial)
        else:
            self.lacking["Fréchet distance"] = "one image, which has no covariance"
        if decoded.score is not None:
            row[names["inception_score"]] = decoded.score.compute().mean
        if len(real.features) > NEIGHBOURHOOD:
            found = precision_recall(
                self.passes,
                decoded.features,
                self._key("reconstruction", "test", keep),
                real.features,
                self._key("reference", "test", 0),
            )
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
        self.findings.neighbours_keep = keep
        self.findings.neighbours = nearest(found["train"]["cls"], found["test"]["cls"][:QUERIES])
        row = self._exact_probes("features", keep, own, found)
        learned_from = [self._key("features", part, keep) for part in PARTS]
        for protocol in self.recipe.evaluation.probes:
            repeated = [
                {
                    key: value
                    for name in FEATURES
                    for key, value in self.probes.probe(
                        {"of": learned_from, "feature": name},
                        labelled_features(found, name),
                        name,
                        protocol=protocol,
                        seed=seed,
                    ).items()
                }
                | {"majority_top1": row["majority_top1"]}
                for seed in range(self.seeds)
            ]
            row |= averaged(repeated)
        if self._has_untrained_baseline():
            suffixes = {"cls": "untrained", "mean": "untrained_mean"}
            row |= averaged(
                [
                    self._exact_probes(
                        "untrained", keep, suffixes, self._features("untrained", keep, seed), seed
                    )
                    for seed in range(self.seeds)
                ]
            )
        return row

    def _has_untrained_baseline(self) -> bool:
        weights = self.recipe.tokenizer.initial_weights
        wanted = self.recipe.evaluation.untrained_baseline
        if wanted and weights and not Path(weights).is_file():
            self.lacking["untrained baseline"] = (
                f"the weights that training began with, {weights}, are not there"
            )
            return False
        return wanted

    def _labelled(self) -> bool:
        without = [
            batches.dataset.split for batches in self.splits.batches.values() if not batches.dataset.labelled
        ]
        if without:
            self.lacking["probe"] = "no labels" if len(without) > 1 else f"no labels in '{without[0]}'"
        return "probe" not in self.lacking

    def _features(self, kind: PassKind, keep: int, seed: int = 0) -> dict[str, Features]:
        return {part: self._pass(kind, part, keep, seed) for part in PARTS}

    def _finite(self, row: dict[str, float]) -> dict[str, float]:
        # What is no number has no place in a table, a figure or JSON: it is left out, and said.
        for key in [key for key, value in row.items() if not math.isfinite(value)]:
            self.lacking[key] = f"{row.pop(key)} at {row['keep']:.0f} kept tokens"
        return row

    def _exact_probes(
        self, kind: PassKind, keep: int, suffixes: dict[str, str], found: dict[str, Features], seed: int = 0
    ) -> dict[str, float]:
        learned_from = [self._key(kind, part, keep, seed) for part in PARTS]
        labelled = {name: labelled_features(found, name) for name in suffixes}
        row: dict[str, float] = {}
        for name, suffix in suffixes.items():
            row |= self.probes.probe({"of": learned_from, "feature": name}, labelled[name], suffix)
        row["majority_top1"] = majority_top1(found["train"]["label"], found["test"]["label"])
        for name, suffix in suffixes.items():
            row |= self.probes.neighbours({"of": learned_from, "feature": name}, labelled[name], suffix)
        return row

    def _pass(self, kind: PassKind, part: str, keep: int, seed: int = 0) -> Any:
        def over(batches: EvalBatches) -> Any:
            jobs = [
                TokenizerJob(kind, batches.dataset.split, keep, numbers, seed, batches.left_out)
                for numbers in jobs_of_batches(batches.num_batches, BATCHES_PER_JOB)
            ]
            return self.passes.result(self._key(kind, part, keep, seed), jobs)

        return self.splits.over(part, over)

    def _key(self, kind: PassKind, part: str, keep: int, seed: int = 0) -> dict[str, Any]:
        key: dict[str, Any] = {"kind": kind, **batches_key(self.splits.batches[part])}
        if kind in ("reference", "reconstruction"):
            key["extractor"] = {"name": self.network.name, **self.network.identity}
        if kind == "reconstruction" and self.recipe.evaluation.lpips:
            key["lpips"] = lpips_identity(self.recipe.evaluation.lpips)
        if kind == "untrained":
            key |= {"keep": keep, **untrained_identity(self.recipe, seed)}
        elif kind != "reference":
            key |= {"keep": keep, **self.weights}
        return key

    def protocol(self) -> dict[str, Any]:
        """What the numbers mean: data, counts, extractor, weights, probe."""
        recipe, settings = self.recipe, self.recipe.evaluation
        evaluated = self.splits.batches["test"]
        protocol: dict[str, Any] = {
            "suites": list(self.suites),
            "frechet_key": distance_name(self.network, "reconstruction"),
            "keys": likeness_names(self.network),
            "extractor": {"name": self.network.name, **self.network.identity},
            **({"lpips": lpips_identity(settings.lpips)} if settings.lpips else {}),
            "images": evaluated.images,
            "split": recipe.data.evaluation_split,
            "data": self.spec.data,
            "data_fingerprint": evaluated.dataset.fingerprint,
            "preprocessing": f"{evaluation_view_text(recipe.data.views.image_size)}; reconstructions rounded to uint8",
            "background": evaluated.dataset.background or DROPPED,
            "resizing": RESIZING,
            "ema": self.step is not None,
            "step": self.step,
            "checkpoint": self.spec.checkpoint,
            **self.weights,
            "psnr": "an exact image counts as one with a single value off by one level",
            "inception_score": f"{SPLITS} splits, shuffled",
            "precision_recall": f"{NEIGHBOURHOOD} nearest neighbours, the first {MANIFOLD_IMAGES:,} pictures at most",
            "batch": settings.batch,
            "mergevq": mergevq.__version__,
            "caveat": CAVEATS.get(recipe.tokenizer.losses.alignment.kind, ""),
        }
        if self.lacking:
            protocol["lacking"] = dict(self.lacking)
        if self.splits.bad:
            protocol["left_out"] = self.splits.left_out
        if "representation" in self.suites and "probe" not in self.lacking:
            protocol["probe"] = {
                "kind": "logistic regression on standardised features, C chosen on held-out training pictures",
                "train_images": self.splits.batches["train"].images - self.unlabelled["train"],
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


def labelled_features(found: dict[str, Features], name: str) -> LabelledFeatures:
    """The features of one kind, with labels."""
    train, test = (found[part] for part in PARTS)
    return LabelledFeatures(train[name], train["label"], test[name], test["label"])


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
