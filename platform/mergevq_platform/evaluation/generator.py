"""The evaluation of a generator over guidance scales: Fréchet distance to real images, and the share of images whose class is recognised.

Beside every number stand its baselines (codes drawn position by position from the training codes, the generator before its first
step) and its ceiling (reconstructions of real images by the same tokenizer). Samples are addressed by (seed, number), so that the
results of a pass are known by weights, tokenizer, settings and extractor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mergevq
from mergevq.config import to_tree
from mergevq.metrics import distance_name, extractor, frechet_distance, score_name
from mergevq.metrics.features import Extractor
from mergevq.metrics.labelled import unfit_labels
from mergevq.metrics.manifold import DENSITY_K
from mergevq.metrics.manifold import K as NEIGHBOURHOOD
from mergevq_platform.codes import open_codes
from mergevq_platform.data import EvalBatches
from mergevq_platform.data.parquet.background import DROPPED
from mergevq_platform.evaluation.distribution import SCORES as DISTRIBUTION_SCORES
from mergevq_platform.evaluation.distribution import distribution_protocol, distribution_scores
from mergevq_platform.evaluation.generator_codes import stored_counts
from mergevq_platform.evaluation.generator_figures import SHOWN_CLASSES, SHOWN_NEIGHBOURS, write_figures
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.evaluation.generator_results import GeneratorFindings, GeneratorResult, ShownImages
from mergevq_platform.evaluation.generator_worker import RealJob, RealKind, SampledJob, SampledKind
from mergevq_platform.evaluation.manifold import precision_recall
from mergevq_platform.evaluation.neighbours import SIDE, nearest
from mergevq_platform.evaluation.passes import Passes, jobs_of_batches
from mergevq_platform.evaluation.probing import FitProbeJob, ScoreProbeJob
from mergevq_platform.evaluation.spec import batches_key, split_batches
from mergevq_platform.evaluation.splits import EvaluatedSplits
from mergevq_platform.evaluation.statistics import ImageSetStatistics
from mergevq_platform.recipe import ResolvedRecipe
from mergevq_platform.sampling.pipeline import SamplingSpec

BATCHES_PER_JOB = 2  # at least
CLASS_PROBE = "logistic regression on the tokenizer's standardised summary, all tokens kept; C chosen on held-out training pictures"

Key = dict[str, Any]


@dataclass
class RealStatistics:
    """Statistics of the real images, with which others are compared."""

    train: GeneratorResult  # without its summary, once the probe has learnt from it
    train_key: Key
    real: GeneratorResult
    real_key: Key
    probe: dict[str, Any] | None = None  # the fitted one: see `FitProbeJob`
    reconstructed_distance: float = (
        0.0  # median of reconstructed held-out images to their nearest training images
    )


@dataclass
class GeneratorEvaluator:
    """The evaluation of one generator, whose passes workers do. The point without guidance is always measured.

    What the data do not allow is left out, and the protocol says why: without labels no class is recognised, an image that
    cannot be decoded is none of the real ones.
    """

    spec: SamplingSpec
    passes: Passes
    scales: Sequence[float]
    say: Callable[[str], None] = lambda text: None
    distribution: bool = False  # KID, density and coverage too
    findings: GeneratorFindings = field(default_factory=GeneratorFindings)
    lacking: dict[str, str] = field(default_factory=dict)  # what the data do not allow, and why

    def report(self, run: str) -> GeneratorReport:
        """Rows for every scale, ascending, and references; `findings` is filled on the way."""
        settings, data = self.recipe.generator.generation, self.recipe.data
        if self.spec.budget is not None:
            self._held_out_mean()  # raises where their counts are not known
        self.say(f"reading real images of {data.path}")
        known = self._real_statistics()
        references = {"real": self._row(known, known.real, known.real_key)}
        reconstructed, key = self._real("reconstructed", "test")
        known.reconstructed_distance = float(self._median_distance(known, reconstructed, key))
        if not known.reconstructed_distance:
            self.lacking["distance to neighbours"] = "reconstructions are copies of training images"
        else:
            references["real"]["neighbour_ratio"] = self._neighbour_ratio(known, known.real, known.real_key)
        known.real.small, known.real.summary = known.real.small[:0].copy(), known.real.summary[:0].copy()
        references["reconstructed"] = self._row(known, reconstructed, key)
        self._show("reconstructed", reconstructed)
        del reconstructed

        rows: list[dict[str, float]] = []
        for scale in sorted({1.0, *self.scales}):
            self.say(f"generating {settings.images} images at guidance scale {scale:g}")
            result, key = self._sampled("generated", scale)
            row = {"scale": scale, **self._row(known, result, key)}
            row["pictures_per_second"] = len(result.labels) / result.seconds  # of one worker
            row["tokens_per_second"] = result.tokens / result.seconds
            rows.append(row)
            self._show(f"{scale:g}", result)
            del result
        if settings.baselines:
            self.say("measuring the baselines")
            for kind in ("by_position", "untrained"):
                result, key = self._sampled(kind)
                references[kind] = self._row(known, result, key)
                self._show(kind, result)
                del result
        protocol = self._protocol(known, references)
        report = GeneratorReport(run=run, rows=rows, references=references, protocol=protocol)
        self._find_neighbours(known, report.best["scale"])
        return report

    def write_figures(self, report: GeneratorReport, folder: Path) -> dict[str, Path]:
        """The metrics over guidance scales, samples, and samples beside their neighbours, as files in `folder`, by name."""
        return write_figures(report, self.recipe, self.findings, folder)

    @property
    def recipe(self) -> ResolvedRecipe:
        """The recipe whose data and protocol are used."""
        return self.spec.recipe

    @cached_property
    def network(self) -> Extractor:
        """The network of the Fréchet distance."""
        return extractor(self.recipe.evaluation.extractor)

    @cached_property
    def keys(self) -> dict[str, str]:
        """The names of the metrics."""
        keys = {name: score_name(self.network, name) for name in ("precision", "recall", "inception_score")}
        keys["frechet"] = distance_name(self.network, "generation")
        keys["spatial_frechet"] = distance_name(self.network, "generation", "sfd")
        if self.distribution:
            keys |= {name: score_name(self.network, name) for name in DISTRIBUTION_SCORES}
        return keys

    @cached_property
    def splits(self) -> EvaluatedSplits:
        """The real images: those of training (`train`) and those that are compared with (`test`)."""
        data = self.recipe.data
        names = {"train": data.train_split, "test": data.evaluation_split}
        opened = {part: split_batches(self.recipe, data.path, name) for part, name in names.items()}
        return EvaluatedSplits(opened, self.say)

    def _real_statistics(self) -> RealStatistics:
        train, train_key = self._real("train", "train")
        real, real_key = self._real("real", "test")
        known = RealStatistics(train, train_key, real, real_key)
        self.findings.train_images = len(train.labels)
        self._show("real", real)
        names = (self.recipe.data.train_split, self.recipe.data.evaluation_split)
        labels = torch.from_numpy(train.labels), torch.from_numpy(real.labels)
        if reason := unfit_labels(*labels, names=names):
            self.lacking["class"] = reason
        else:
            job = FitProbeJob(train.summary, train.labels)
            known.probe = self.passes.result({"kind": "class_probe", "of": train_key}, [job])
        train.summary = train.summary[:0].copy()
        if len(real.labels) < 2:
            self.lacking["Fréchet distance"] = f"one image in '{names[1]}', which has no covariance"
        if len(real.labels) <= NEIGHBOURHOOD:
            self.lacking["precision and recall"] = (
                f"{len(real.labels)} images in '{names[1]}', which lack neighbours"
            )
        if self.distribution and len(real.labels) <= DENSITY_K:
            self.lacking["KID, density and coverage"] = (
                f"{len(real.labels)} images in '{names[1]}', which lack {DENSITY_K} neighbours"
            )
        return known

    def _row(self, known: RealStatistics, result: GeneratorResult, key: Key) -> dict[str, float]:
        """Metrics of a set of images whose labels are the classes that they ought to show."""
        statistics, real = result.statistics, known.real.statistics
        assert statistics is not None
        assert real is not None
        row: dict[str, float] = {}
        fewest = min(statistics.pool.count, real.pool.count)
        if fewest > 1:
            row[self.keys["frechet"]] = frechet_distance(real.pool, statistics.pool)
        if known.probe is not None:
            job = ScoreProbeJob(known.probe, result.summary, result.labels)
            found = self.passes.result({"kind": "class_top1", "of": key, "probe": known.train_key}, [job])
            row |= {
                "class_top1": found["top1"],
                "class_top1_low": found["low"],
                "class_top1_high": found["high"],
            }
        if fewest > 1 and real.spatial is not None and statistics.spatial is not None:
            row[self.keys["spatial_frechet"]] = frechet_distance(real.spatial, statistics.spatial)
        if result is not known.real and fewest > NEIGHBOURHOOD:
            manifold = precision_recall(self.passes, statistics.features, key, real.features, known.real_key)
            row |= {self.keys[name]: value for name, value in manifold.items()}
        if self.distribution and result is not known.real and fewest > DENSITY_K:
            row |= self._distribution(known, statistics, key)
        if statistics.score is not None:
            row[self.keys["inception_score"]] = statistics.score.compute().mean
        if known.reconstructed_distance:
            row["neighbour_ratio"] = self._neighbour_ratio(known, result, key)
        return row

    def _distribution(
        self, known: RealStatistics, statistics: ImageSetStatistics, key: Key
    ) -> dict[str, float]:
        assert known.real.statistics is not None
        features, real = statistics.features, known.real.statistics.features
        found = distribution_scores(self.passes, features, key, real, known.real_key)
        return {score_name(self.network, name): value for name, value in found.items()}

    def _neighbour_ratio(self, known: RealStatistics, result: GeneratorResult, key: Key) -> float:
        return float(self._median_distance(known, result, key) / known.reconstructed_distance)

    def _median_distance(self, known: RealStatistics, result: GeneratorResult, key: Key) -> np.floating:
        distances, _ = nearest(self.passes, result.small, key, known.train.small, known.train_key)
        return np.median(distances[:, 0])

    def _find_neighbours(self, known: RealStatistics, scale: float) -> None:
        small = self.findings.shown[f"{scale:g}"].small[:SHOWN_CLASSES]
        key = self._sampled_key("generated", scale)
        self.findings.neighbours = nearest(
            self.passes, small, key, known.train.small, known.train_key, k=SHOWN_NEIGHBOURS
        )

    def _show(self, name: str, result: GeneratorResult) -> None:
        self.findings.shown[name] = ShownImages.of(result)

    def _real(self, kind: RealKind, part: str) -> tuple[GeneratorResult, Key]:
        def key(batches: EvalBatches) -> Key:
            key = {"kind": kind, **batches_key(batches), "tokenizer": self.spec.tokenizer.sha256}
            if kind != "train":
                key["extractor"] = {"name": self.network.name, **self.network.identity}
            if kind == "reconstructed":
                key |= {
                    "keep": self.spec.keep,
                    "source": self.spec.protocol()["source"],
                    **self._counts_key(),
                }
            return key

        def over(batches: EvalBatches) -> GeneratorResult:
            jobs = [
                RealJob(kind, numbers, batches.dataset.split, batches.left_out)
                for numbers in jobs_of_batches(batches.num_batches, BATCHES_PER_JOB)
            ]
            return self.passes.result(key(batches), jobs)

        return self.splits.over(part, over), key(self.splits.batches[part])

    def _sampled(self, kind: SampledKind, scale: float = 1.0) -> tuple[GeneratorResult, Key]:
        settings = self.recipe.generator.generation
        jobs = [
            SampledJob(kind, numbers, scale)
            for numbers in jobs_of_batches(-(-settings.images // settings.batch), BATCHES_PER_JOB)
        ]
        key = self._sampled_key(kind, scale)
        return self.passes.result(key, jobs), key

    def _sampled_key(self, kind: SampledKind, scale: float = 1.0) -> Key:
        settings, spec, task = self.recipe.generator.generation, self.spec, self.recipe.generator
        key: Key = {
            "kind": kind,
            "images": settings.images,
            "batch": settings.batch,
            "classes": task.model.classes,
            "seed": spec.seed,
            "keep": spec.keep,
            "tokenizer": spec.tokenizer.sha256,
            "extractor": {"name": self.network.name, **self.network.identity},
            **self._counts_key(),
        }
        if kind == "by_position":
            return key | {"model": task.model.kind, "codes": self._codes_identity()}
        key |= {"steps": spec.steps, "sampling": spec.sampling, "guidance": spec.at_scale(scale).guidance}
        if kind == "generated":
            return key | {"weights_sha256": spec.sha256}
        model = json.dumps(to_tree(task.model), sort_keys=True)
        return key | {
            "initialisation": f"seed {self.recipe.seed}, torch {torch.__version__}",
            "model_sha256": hashlib.sha256(model.encode()).hexdigest(),
        }

    def _held_out_mean(self) -> float:
        """The mean kept count at which held-out images are reconstructed, where each has its own."""
        held_out = self.splits.batches["test"]
        return float(stored_counts(self.recipe, held_out)[np.asarray(held_out.rows)].mean())

    def _counts_key(self) -> Key:
        # Counts are drawn from what the generator learnt; those of real images are stored with their codes.
        spec, codes = self.spec, self.recipe.generator.codes
        if spec.budget is None:
            return {}
        assert codes is not None
        held_out = open_codes(codes, self.recipe.data.evaluation_split)
        return {"budget": spec.budget, "counts_of": spec.sha256, "codes": held_out.fingerprint}

    def _codes_identity(self) -> Mapping[str, Any]:
        codes = self.recipe.generator.codes
        if codes:
            return {"code_set": open_codes(codes, self.recipe.data.train_split).fingerprint}
        return batches_key(split_batches(self.recipe, self.recipe.data.path, self.recipe.data.train_split))

    def _protocol(self, known: RealStatistics, references: dict[str, dict[str, float]]) -> dict[str, Any]:
        recipe, held_out = self.recipe, self.splits.batches["test"]
        protocol = {
            **self.spec.protocol(),
            "keys": self.keys,
            "extractor": {"name": self.network.name, **self.network.identity},
            "images": recipe.generator.generation.images,
            "reference": {"split": recipe.data.evaluation_split, "images": len(known.real.labels)},
            "data": recipe.data.path,
            "data_fingerprint": held_out.dataset.fingerprint,
            "background": held_out.dataset.background or DROPPED,
            "neighbours": f"nearest of {len(known.train.labels)} training pictures and their mirror images, in pixels at {SIDE} px",
            "batch": recipe.generator.generation.batch,
            "mergevq": mergevq.__version__,
        }
        if self.spec.budget is not None:
            protocol["reconstructed_mean"] = self._held_out_mean()
        if known.probe is not None:
            of_class = known.real.labels[known.real.labels >= 0]
            protocol |= {
                "class_probe": {
                    "kind": CLASS_PROBE,
                    "train_images": known.probe["train_images"],
                    "real_top1": references["real"]["class_top1"],
                },
                "chance_top1": 100 * float(np.bincount(of_class).max()) / len(of_class),
            }
        if self.distribution and len(known.real.labels) > DENSITY_K:
            protocol["distribution"] = distribution_protocol(
                recipe.generator.generation.images, len(known.real.labels)
            )
        if self.lacking:
            protocol["lacking"] = self.lacking
        if self.splits.bad:
            protocol["left_out"] = self.splits.left_out
        return protocol
