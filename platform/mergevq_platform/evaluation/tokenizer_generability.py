"""The suite `generability`: what codes are worth to a generator that errs, at a kept count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from mergevq.metrics import (
    CodeUsage,
    histogram_distance,
    mean_distance,
    perturbed_distance_name,
    perturbed_distances,
)
from mergevq.metrics.features import Extractor
from mergevq.perturbation import RATES, strengths
from mergevq.quantize import QuantizerConfig
from mergevq_platform.evaluation.perturbed_jobs import (
    SEED,
    CodeHistogramsJob,
    PerturbedCodesJob,
    PerturbedSourceJob,
)
from mergevq_platform.evaluation.tokenizer_passes import TokenizerPasses

HISTOGRAM_KEY = "chd_1d"


@dataclass
class GenerabilitySuite:
    """pFID, the same of a perturbed source, and the distance of code histograms; `lacking` is filled on the way."""

    passes: TokenizerPasses
    lacking: dict[str, str]  # what the data do not allow, and why

    def row(self, keep: int) -> dict[str, float]:
        """The metrics at a kept count."""
        return self._perturbed(keep) | self._histograms(keep)

    def _perturbed(self, keep: int) -> dict[str, float]:
        real, name = self.passes.reference.pool, perturbed_distance_name(self.passes.network)
        model = self.passes.spec.recipe.tokenizer.model
        if real.count < 2:
            self.lacking["perturbed Fréchet distance"] = "one image, which has no covariance"
            return {}
        moments, distances = real.moments(), dict[str, float]()
        for delta in strengths(model.quantizer.vocabulary):
            about = {"keep": keep, "neighbours": delta}
            job = partial(PerturbedCodesJob, keep=keep, neighbours=delta)
            # One strength after the other: statistics of Inception's features are 33 MB a cell.
            distances |= perturbed_distances(moments, self.passes.perturbed("perturbed_codes", about, job))
        row = {name: mean_distance(distances)}
        for rate in sorted(RATES):
            at_rate = {cell: value for cell, value in distances.items() if cell.startswith(f"rate {rate:g},")}
            row[f"{name}_rate_{100 * rate:.0f}"] = mean_distance(at_rate)
        if model.recovery is None:
            self.lacking["perturbed source"] = "the tokenizer has no Source Recovery"
            return row
        job_of_source = partial(PerturbedSourceJob, keep=keep)
        shares = self.passes.perturbed("perturbed_source", {"keep": keep}, job_of_source)
        return row | {f"{name}_source": mean_distance(perturbed_distances(moments, shares))}

    def _histograms(self, keep: int) -> dict[str, float]:
        found = self.passes.code_histograms(keep, partial(CodeHistogramsJob, keep=keep))
        row = {HISTOGRAM_KEY: histogram_distance(found.images, found.reconstructions)}
        if (other := _rest(found.images, found.half)) is not None:
            row[f"{HISTOGRAM_KEY}_halves"] = histogram_distance(found.half, other)
        return row


def generability_protocol(network: Extractor, quantizer: QuantizerConfig) -> dict[str, Any]:
    """The protocol of the suite's numbers."""
    name = perturbed_distance_name(network)
    return {
        "frechet_key": name,
        "rates": list(RATES),
        "strengths": list(strengths(quantizer.vocabulary)),
        "nearest": "by distance between codes, the code itself among them, ties by chance; strengths in proportion to the "
        "vocabulary (arXiv 2509.12474, section 5.1)",
        "images": "all, each perturbed by its row of the split",
        "source": f"{name}_source: true codes; shares of cells given to a draw of Source Recovery's softmax, mean over the rates",
        HISTOGRAM_KEY: "Hellinger distance of code histograms, images against reconstructions encoded again, by the codes of the "
        "measured tokenizer: the unigram half of CHD (arXiv 2603.08064), which has TiTok's codes; `_halves`: even against odd rows",
        "seed": SEED,
    }


def _rest(whole: CodeUsage, part: CodeUsage) -> CodeUsage | None:
    """The counts of the images that are not in `part`; None where either has none."""
    all_of, of_part = whole.checked(), part.checked()
    if all_of is None or of_part is None or not int((all_of - of_part).sum()) or not int(of_part.sum()):
        return None
    rest = CodeUsage(whole.size)
    rest.counts, rest.reach = whole.counts, whole.reach
    rest = rest.cpu_copy()
    assert rest.counts is not None
    rest.counts[:-1] -= of_part.cpu()
    return rest
