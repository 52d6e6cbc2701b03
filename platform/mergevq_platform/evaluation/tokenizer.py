"""The evaluation of a tokenizer: the suites `reconstruction` and `representation` at every kept count, and their protocol."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mergevq
from mergevq.config import to_tree
from mergevq.metrics import distance_name
from mergevq.metrics.manifold import K as NEIGHBOURHOOD
from mergevq.metrics.sgd_probe import PUBLISHED
from mergevq_platform.data.parquet.background import DROPPED
from mergevq_platform.data.views import RESIZING, evaluation_view_text
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.distribution import distribution_protocol
from mergevq_platform.evaluation.options import SUITES, Suite
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.spec import EvaluationSpec
from mergevq_platform.evaluation.statistics import SPLITS
from mergevq_platform.evaluation.tokenizer_ar_probe import ArProbeSuite, ar_probe_protocol
from mergevq_platform.evaluation.tokenizer_figures import write_figures
from mergevq_platform.evaluation.tokenizer_generability import GenerabilitySuite, generability_protocol
from mergevq_platform.evaluation.tokenizer_passes import TokenizerPasses, lpips_identity
from mergevq_platform.evaluation.tokenizer_reconstruction import ReconstructionSuite, likeness_names
from mergevq_platform.evaluation.tokenizer_representation import RepresentationSuite
from mergevq_platform.evaluation.tokenizer_results import TokenizerFindings
from mergevq_platform.evaluation.tokenizer_worker import MANIFOLD_IMAGES
from mergevq_platform.recipe import ResolvedRecipe

CAVEATS = {
    "stand_in": "The alignment teacher is a stand-in that saw these labels: the probe measures distillation, not self-supervision.",
    "supervised": "Training used the labels: the probe measures supervised features, not self-supervision.",
}


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

    @cached_property
    def measured(self) -> TokenizerPasses:
        """The passes of this tokenizer."""
        return TokenizerPasses(self.spec, self.passes, self.say)

    @cached_property
    def reconstruction(self) -> ReconstructionSuite:
        """The suite of reconstructions."""
        return ReconstructionSuite(
            self.measured, self.findings, self.lacking, distribution="distribution" in self.suites
        )

    @cached_property
    def representation(self) -> RepresentationSuite:
        """The suite of features."""
        return RepresentationSuite(self.measured, self.findings, self.lacking, self.seeds)

    @cached_property
    def generability(self) -> GenerabilitySuite:
        """The suite of what codes are worth to a generator."""
        return GenerabilitySuite(self.measured, self.lacking)

    @cached_property
    def ar_probe(self) -> ArProbeSuite:
        """The suite of a small generator of fixed size."""
        return ArProbeSuite(self.measured, self.lacking)

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
                row |= self.reconstruction.row(keep)
            if "representation" in self.suites:
                row |= self.representation.row(keep)
            if "generability" in self.suites:
                row |= self.generability.row(keep)
            if "ar_probe" in self.suites:
                row |= self.ar_probe.row(keep)
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

    def _finite(self, row: dict[str, float]) -> dict[str, float]:
        # What is no number has no place in a table, a figure or JSON: it is left out, and said.
        for key in [key for key, value in row.items() if not math.isfinite(value)]:
            self.lacking[key] = f"{row.pop(key)} at {row['keep']:.0f} kept tokens"
        return row

    def protocol(self) -> dict[str, Any]:
        """The protocol of the numbers: data, counts, extractor, weights, probe."""
        recipe, settings = self.recipe, self.recipe.evaluation
        evaluated = self.measured.splits.batches["test"]
        protocol: dict[str, Any] = {
            "suites": list(self.suites),
            "frechet_key": distance_name(self.measured.network, "reconstruction"),
            "keys": likeness_names(self.measured.network),
            "extractor": self.measured.extractor_identity,
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
            **self.measured.weights,
            "psnr": "an exact image counts as one with a single value off by one level",
            "inception_score": f"{SPLITS} splits, shuffled",
            "precision_recall": f"{NEIGHBOURHOOD} nearest neighbours, the first {MANIFOLD_IMAGES:,} pictures at most",
            "batch": settings.batch,
            "mergevq": mergevq.__version__,
            "caveat": CAVEATS.get(recipe.tokenizer.losses.alignment.kind, ""),
        }
        protocol |= self._beside()
        if self.lacking:
            protocol["lacking"] = dict(self.lacking)
        if self.measured.splits.bad:
            protocol["left_out"] = self.measured.splits.left_out
        if "representation" in self.suites and "probe" not in self.lacking:
            protocol["probe"] = {
                "kind": "logistic regression on standardised features, C chosen on held-out training pictures",
                "train_images": self.measured.splits.batches["train"].images
                - self.representation.unlabelled["train"],
                **(
                    {"unlabelled": self.representation.unlabelled}
                    if any(self.representation.unlabelled.values())
                    else {}
                ),
                "features": {
                    "cls": "summary token",
                    "mean": "kept tokens before quantization, averaged over grid cells",
                },
                "tokens": "as many as the row keeps, in training and test pictures alike",
                "published": {name: to_tree(PUBLISHED[name]) for name in settings.probes},
                "untrained_seeds": self.seeds if settings.untrained_baseline else 0,
            }
        return protocol

    def _beside(self) -> dict[str, Any]:
        """The protocol of the suites beside the two of every curve."""
        found: dict[str, Any] = {}
        if "distribution" in self.suites and self.reconstruction.compared:
            found["distribution"] = distribution_protocol(*self.reconstruction.compared)
        if "generability" in self.suites:
            quantizer = self.recipe.tokenizer.model.quantizer
            found["generability"] = generability_protocol(self.measured.network, quantizer)
        if "ar_probe" in self.suites and "AR probe" not in self.lacking:
            train_images = self.measured.splits.batches["train"].images
            found["ar_probe"] = ar_probe_protocol(self.measured.network, train_images)
        return found
