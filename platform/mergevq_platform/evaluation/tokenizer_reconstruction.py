"""The suite `reconstruction`: likeness of reconstructions to the images, codes, and recovery at a kept count."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mergevq.metrics import bits_per_image, distance_name, frechet_distance, score_name
from mergevq.metrics.features import Extractor
from mergevq.metrics.manifold import DENSITY_K
from mergevq.metrics.manifold import K as NEIGHBOURHOOD
from mergevq.metrics.pixels import WINDOW
from mergevq_platform.evaluation.distribution import distribution_scores
from mergevq_platform.evaluation.manifold import precision_recall
from mergevq_platform.evaluation.statistics import ImageSetStatistics
from mergevq_platform.evaluation.tokenizer_passes import TokenizerPasses
from mergevq_platform.evaluation.tokenizer_results import TokenizerFindings


@dataclass
class ReconstructionSuite:
    """Metrics of reconstructions; `findings` and `lacking` are filled on the way."""

    passes: TokenizerPasses
    findings: TokenizerFindings
    lacking: dict[str, str]  # what the data do not allow, and why
    distribution: bool = False  # KID, density and coverage too
    compared: tuple[int, int] | None = None  # features of both sets that these compared

    def row(self, keep: int) -> dict[str, float]:
        """Likeness of the whole sets, pixels, codes and recovery at a kept count."""
        part = self.passes.reconstruction(keep)
        assert part.codes is not None
        frechet, model = (
            distance_name(self.passes.network, "reconstruction"),
            self.passes.spec.recipe.tokenizer.model,
        )
        row = self._likeness(part.true, keep)
        if part.ssim is None:
            self.lacking["SSIM"] = (
                f"images of {self.passes.splits.batches['test'].size} px, under its window of {WINDOW}"
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
            if self.passes.reference.pool.count > 1:
                row[f"{frechet}_recovered"] = frechet_distance(self.passes.reference.pool, part.recovered)
            row["psnr_recovered"] = part.psnr_recovered.compute()["psnr"]
            row |= part.recovery.compute()
        return row

    def _likeness(self, decoded: ImageSetStatistics, keep: int) -> dict[str, float]:
        real, names = self.passes.reference, likeness_names(self.passes.network)
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
                self.passes.passes,
                decoded.features,
                self.passes.reconstruction_key(keep),
                real.features,
                self.passes.reference_key(),
            )
            row |= {names[name]: value for name, value in found.items()}
        else:
            self.lacking["precision and recall"] = (
                f"{len(real.features)} images, which lack {NEIGHBOURHOOD} neighbours"
            )
        if self.distribution:
            row |= self._distribution(decoded, keep)
        return row

    def _distribution(self, decoded: ImageSetStatistics, keep: int) -> dict[str, float]:
        real, network = self.passes.reference, self.passes.network
        fewest = min(len(real.features), len(decoded.features))
        if fewest <= DENSITY_K:
            self.lacking["KID, density and coverage"] = f"{fewest} images, which lack {DENSITY_K} neighbours"
            return {}
        self.compared = len(decoded.features), len(real.features)
        found = distribution_scores(
            self.passes.passes,
            decoded.features,
            self.passes.reconstruction_key(keep),
            real.features,
            self.passes.reference_key(),
        )
        return {score_name(network, name, "reconstruction"): value for name, value in found.items()}


def likeness_names(network: Extractor) -> dict[str, str]:
    """The names of the set metrics of reconstructions (Fréchet distances, scores) with the network's features."""
    return {
        "frechet": distance_name(network, "reconstruction"),
        "spatial_frechet": distance_name(network, "reconstruction", "sfd"),
        **{
            name: score_name(network, name, "reconstruction")
            for name in ("inception_score", "precision", "recall")
        },
    }
