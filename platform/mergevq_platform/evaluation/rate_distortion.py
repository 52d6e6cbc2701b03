"""The evaluation of allocators: quality, representation and bits of a tokenizer whose images keep counts of their own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mergevq.allocation import (
    CompressedSizeAllocatorConfig,
    Menu,
    OracleAllocatorConfig,
    require_within,
)
from mergevq.allocation.config import KINDS
from mergevq.errors import InputError
from mergevq.metrics import distance_name, frechet_distance
from mergevq.metrics.codes import partitions_bits
from mergevq.metrics.labelled import unfit_labels
from mergevq_platform.allocation.allocator_ref import AllocatorRef, find_allocator
from mergevq_platform.allocation.calibrating import CalibratedAllocator, calibrated
from mergevq_platform.allocation.scores import AllocationPasses, Part
from mergevq_platform.evaluation.allocated import Allocated, AllocatedPasses
from mergevq_platform.evaluation.equal_quality import Saving, savings
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.probing import Probes
from mergevq_platform.evaluation.rate_distortion_figures import AllocationFindings, write_figures
from mergevq_platform.evaluation.rate_distortion_protocol import rate_distortion_protocol
from mergevq_platform.evaluation.rate_distortion_report import FIXED, ORACLE, RateDistortionReport
from mergevq_platform.evaluation.tokenizer_passes import TokenizerPasses, lpips_name
from mergevq_platform.evaluation.tokenizer_representation import majority_top1
from mergevq_platform.evaluation.trends import rank_correlation

Choice = tuple[str, float]  # allocator and wanted mean


@dataclass
class RateDistortionEvaluator:
    """The evaluation of allocators for one tokenizer, whose passes workers do."""

    passes: TokenizerPasses
    allocators: Sequence[AllocatorRef]
    budgets: Sequence[float]
    step: int | None = None  # of the checkpoint; none: the weights are as someone saved them
    say: Callable[[str], None] = lambda text: None
    findings: AllocationFindings = field(default_factory=AllocationFindings)
    lacking: dict[str, str] = field(default_factory=dict)  # what the data do not allow, and why

    @cached_property
    def scores(self) -> AllocationPasses:
        """The passes of what allocators see."""
        return AllocationPasses(self.passes)

    @cached_property
    def calibrated(self) -> dict[str, CalibratedAllocator]:
        """Each allocator with its constants, by name, for those budgets that it can have on the images of calibration."""

        def refused(ref: AllocatorRef, budget: float, error: InputError) -> None:
            self.lacking[f"row of {ref.name} at {budget:g}"] = str(
                error
            )  # others are compared there all the same

        ready = calibrated(self.scores, self.allocators, self.budgets, refused=refused)
        return {each.ref.name: each for each in ready}

    @cached_property
    def menu(self) -> Menu:
        """All counts of the allocators, ascending."""
        return tuple(sorted({count for ref in self.allocators for count in ref.menu}))

    @cached_property
    def squared_errors(self) -> np.ndarray:
        """The mean squared error (B, M) of every evaluated image at every count, in squared levels of 8 bits."""
        self.say(f"measuring every image at {len(self.menu)} kept counts")
        return self.scores.scores(AllocatorRef(ORACLE, OracleAllocatorConfig(), self.menu), "test").numpy()

    @cached_property
    def jpeg_bytes(self) -> np.ndarray:
        """The bytes (B,) of every evaluated image as a JPEG, beyond those of a uniform one."""
        ref = AllocatorRef("compressed_size", CompressedSizeAllocatorConfig(), self.menu)
        return self.scores.scores(ref, "test").numpy()

    def counts(self, part: Part) -> dict[Choice, np.ndarray]:
        """The kept count (B,) of every image of a part, by allocator and wanted mean."""
        found = {}
        for name, ready in self.calibrated.items():
            allocator, scores = ready.load(), self.scores.scores(ready.ref, part)
            for known in ready.calibration.budgets:
                found[name, known.budget] = allocator.counts(scores, known.constant).numpy()
        return found

    def report(self, run: str) -> RateDistortionReport:
        """The rows of every allocator at every wanted mean; `findings` is filled on the way."""
        assert (
            self.calibrated
        )  # first of all: what cannot be calibrated costs no pass over the evaluated images
        counts, quality = self.counts("test"), self.quality()
        train = self.counts("train") if self._labelled() else None
        rows = {choice: self._row(choice, chosen, quality) for choice, chosen in counts.items()}
        self.say("measuring each image at its own counts")
        for choice, found in AllocatedPasses(self.passes).measured(counts, train):
            rows[choice] |= self._likeness(found) | self._probe(found)
        self._save(rows, counts, quality)
        self.findings.take(counts, quality["psnr"], self.menu)
        allocators: dict[str, list[dict[str, float]]] = {ref.name: [] for ref in self.allocators}
        for (name, _), row in rows.items():
            allocators[name].append({key: value for key, value in row.items() if math.isfinite(value)})
        histograms: dict[str, dict[str, dict[str, int]]] = {name: {} for name in allocators}
        for (name, budget), chosen in counts.items():
            kept, images = np.unique(chosen, return_counts=True)
            histograms[name][f"{budget:g}"] = {str(k): int(n) for k, n in zip(kept, images, strict=True)}
        return RateDistortionReport(run, self._menu_rows(quality), allocators, histograms, self._protocol())

    def write_figures(self, report: RateDistortionReport, folder: Path) -> dict[str, Path]:
        """Rate and distortion, counts, images with few and many tokens: files in `folder`, by name."""
        return write_figures(report, self.passes, self.findings, folder)

    def quality(self) -> dict[str, np.ndarray]:
        """Metrics of every evaluated image at every count of the menu, each (B, M) float64, by name."""
        errors = self.squared_errors
        size = self.passes.splits.batches["test"].size
        values = 3 * math.prod((size, size) if isinstance(size, int) else size)
        found = {"psnr": 10 * np.log10(255.0**2 / np.maximum(errors, 1 / values)), "mse": errors}
        if (files := self.passes.spec.recipe.evaluation.lpips) is not None:
            found[lpips_name(files)] = AllocatedPasses(self.passes).lpips(self.menu).astype(float)
        return found

    def _menu_rows(self, quality: dict[str, np.ndarray]) -> list[dict[str, float]]:
        means = {key: values.mean(0) for key, values in quality.items()}
        return [
            {
                "keep": float(count),
                **{key: float(values[place]) for key, values in means.items()},
                **self._bits(np.array([count]), FIXED),
            }
            for place, count in enumerate(self.menu)
        ]

    def _row(self, choice: Choice, counts: np.ndarray, quality: dict[str, np.ndarray]) -> dict[str, float]:
        name, budget = choice
        known = self.calibrated[name].calibration.of(budget)
        places = np.searchsorted(self.menu, counts)
        row = {"budget": budget, "kept": float(counts.mean()), "kept_std": float(counts.std())}
        row |= {key: float(values[np.arange(len(counts)), places].mean()) for key, values in quality.items()}
        row |= self._bits(counts, name) | {"constant": known.constant, "calibrated_kept": known.reached}
        if len(set(counts.tolist())) > 1:
            row["jpeg_rank_correlation"] = rank_correlation(self.jpeg_bytes.tolist(), counts.tolist())
        return row

    def _bits(self, counts: np.ndarray, name: str) -> dict[str, float]:
        model = self.passes.spec.recipe.tokenizer.model
        kept, images = np.unique(counts, return_counts=True)
        source = [partitions_bits(model.grid_tokens, int(count)) for count in kept]
        menu = next((ref.menu for ref in self.allocators if ref.name == name), self.menu)
        return {
            "bits": float(counts.mean()) * math.log2(model.quantizer.vocabulary),
            "bits_count": 0.0 if name == FIXED else math.log2(len(menu)),
            "bits_source": float(np.average(source, weights=images)),
        }

    def _likeness(self, found: Allocated) -> dict[str, float]:
        real = self.passes.reference.pool
        if real.count < 2:
            self.lacking["Fréchet distance"] = "one image, which has no covariance"
            return {}
        return {
            distance_name(self.passes.network, "reconstruction"): frechet_distance(real, found.statistics)
        }

    @cached_property
    def _probes(self) -> Probes:
        return Probes(self.passes.passes)

    def _probe(self, found: Allocated) -> dict[str, float]:
        if found.features is None:
            return {}
        data, features = self.passes.spec.recipe.data, found.features
        labels = torch.from_numpy(features.train_y), torch.from_numpy(features.test_y)
        if (reason := unfit_labels(*labels, names=(data.train_split, data.evaluation_split))) is not None:
            self.lacking["probe"] = reason
            return {}
        row = self._probes.probe({"of": found.key, "feature": "cls"}, features, "cls")
        return row | {"majority_top1": majority_top1(features.train_y, features.test_y)}

    def _labelled(self) -> bool:
        batches = self.passes.splits.batches.values()
        without = [each.dataset.split for each in batches if not each.dataset.labelled]
        if without:
            self.lacking["probe"] = f"no labels in {' and '.join(map(repr, without))}"
        return not without

    def _save(
        self,
        rows: dict[Choice, dict[str, float]],
        counts: dict[Choice, np.ndarray],
        quality: dict[str, np.ndarray],
    ) -> None:
        """Add to the rows what each choice saves at equal PSNR and at equal squared error, and its share of the oracle's gain."""
        varied = {choice: chosen for choice, chosen in counts.items() if choice[0] != FIXED}
        of_choice = savings(self.menu, quality["psnr"], varied)
        at_equal_error = savings(self.menu, -quality["mse"], varied)
        for (name, budget), saving in of_choice.items():
            row = rows[name, budget]
            row |= _saving_row(saving)
            keys = ("saved_tokens_mse", "saved_tokens_mse_low", "saved_tokens_mse_high")
            row |= dict(zip(keys, at_equal_error[name, budget].saved_tokens, strict=True))
            bound = of_choice.get((ORACLE, budget))
            if bound is not None and name != ORACLE and bound.gain.value > 0:
                row["oracle_share"] = saving.gain.value / bound.gain.value

    def _protocol(self) -> dict[str, Any]:
        return rate_distortion_protocol(self.passes, self.allocators, self.menu, self.step, self.lacking)


def rate_distortion(passes: TokenizerPasses, options: EvaluationOptions) -> RateDistortionEvaluator:
    """The evaluator of the allocators and budgets that `options` name; its kept counts are the menu.

    Raises `InputError` for an allocator that is not there or does not fit, and for budgets outside the menu or in one whole count.
    """
    names = list(dict.fromkeys(options.allocators or KINDS))
    recipe = passes.spec.recipe
    refs = [find_allocator(name, recipe.tokenizer, menu=options.keeps) for name in names]
    budgets = sorted(set(options.budgets or ()))
    for ref in refs:
        for budget in budgets:
            require_within(budget, ref.menu)
    for lower, higher in pairwise(budgets):
        if round(lower) == round(higher):
            raise InputError(
                f"budgets {lower:g} and {higher:g} are one whole number: give budgets that differ by 1 or more"
            )
    return RateDistortionEvaluator(passes, refs, budgets, options.step, options.say)


def _saving_row(saving: Saving) -> dict[str, float]:
    row = {"saved_share": saving.saved_tokens.value / saving.equal_tokens.value}
    keys = ("equal_tokens", "saved_tokens", "psnr_gain", "psnr_gain_blind")
    for key, interval in zip(keys, saving, strict=True):
        row |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
    return row
