"""The passes of a tokenizer's evaluation: all images of a split, of one kind, at one kept count; and their keys in the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, TypeVar

from mergevq.metrics import extractor
from mergevq.metrics.features import Extractor
from mergevq.metrics.lpips import LpipsDistance, LpipsFilesConfig
from mergevq.perturbation import RATES
from mergevq_platform.data import EvalBatches
from mergevq_platform.evaluation.passes import Passes, jobs_of_batches
from mergevq_platform.evaluation.perturbed_jobs import SEED, Cells, CodeHistograms
from mergevq_platform.evaluation.spec import (
    EvaluationSpec,
    batches_key,
    identity,
    split_batches,
    untrained_identity,
)
from mergevq_platform.evaluation.splits import EvaluatedSplits
from mergevq_platform.evaluation.statistics import ImageSetStatistics
from mergevq_platform.evaluation.tokenizer_results import ReconstructionResult
from mergevq_platform.evaluation.tokenizer_worker import (
    Features,
    FeaturesJob,
    ImageBatches,
    ReconstructionJob,
    ReferenceJob,
)
from mergevq_platform.evaluation.worker import BatchesJob

BATCHES_PER_JOB = 4  # at least
PARTS = ("train", "test")  # what probes learn from, and what is evaluated

PerturbedKind = Literal["perturbed_codes", "perturbed_source"]
PassKind = Literal["reference", "reconstruction", "features", "untrained", "code_histograms"] | PerturbedKind
Key = dict[str, Any]
Result = TypeVar("Result")


@dataclass
class TokenizerPasses:
    """The passes of one tokenizer: workers do them, the cache keeps them."""

    spec: EvaluationSpec
    passes: Passes
    say: Callable[[str], None] = lambda text: None

    @cached_property
    def network(self) -> Extractor:
        """The network of the Fréchet distance."""
        return extractor(self.spec.recipe.evaluation.extractor)

    @cached_property
    def splits(self) -> EvaluatedSplits:
        """The batches that are evaluated (`test`) and that probes learn from (`train`)."""
        recipe = self.spec.recipe
        names = {"test": recipe.data.evaluation_split, "train": recipe.data.train_split}
        opened = {part: split_batches(recipe, self.spec.data, name) for part, name in names.items()}
        return EvaluatedSplits(opened, self.say)

    @cached_property
    def weights(self) -> dict[str, str]:
        """The identity of the weights: part of the key of a pass."""
        return identity(self.spec)

    @cached_property
    def reference(self) -> ImageSetStatistics:
        """The statistics of the evaluated images themselves."""
        return self.over("test", self.reference_key, ReferenceJob)

    def reconstruction(self, keep: int) -> ReconstructionResult:
        """Reconstructions of the evaluated images at a kept count."""
        return self.over(
            "test", lambda: self.reconstruction_key(keep), lambda batches: ReconstructionJob(batches, keep)
        )

    def features(self, keep: int, *, untrained: int | None = None) -> dict[str, Features]:
        """Features of both parts at a kept count, of the trained tokenizer or of an untrained one with this seed."""
        return {part: self._features(part, keep, untrained) for part in PARTS}

    def perturbed(
        self, kind: PerturbedKind, about: Mapping[str, Any], job: Callable[[ImageBatches], BatchesJob[Cells]]
    ) -> Cells:
        """Feature statistics of perturbed reconstructions, by cell of the grid."""
        return self.over("test", lambda: {**self._perturbed_key(kind), **about}, job)

    def code_histograms(
        self, keep: int, job: Callable[[ImageBatches], BatchesJob[CodeHistograms]]
    ) -> CodeHistograms:
        """Codes of the evaluated images and of their reconstructions at a kept count."""
        return self.over(
            "test", lambda: self._key("code_histograms", "test") | {"keep": keep, **self.weights}, job
        )

    def reference_key(self) -> Key:
        """The key of the pass of the images themselves."""
        return self._key("reference", "test") | {"extractor": self.extractor_identity}

    def reconstruction_key(self, keep: int) -> Key:
        """The key of a pass of reconstructions."""
        key = self._key("reconstruction", "test") | {"extractor": self.extractor_identity}
        if files := self.spec.recipe.evaluation.lpips:
            key["lpips"] = lpips_identity(files)
        return key | {"keep": keep, **self.weights}

    def features_key(self, part: str, keep: int, untrained: int | None = None) -> Key:
        """The key of a pass of features."""
        if untrained is None:
            return self._key("features", part) | {"keep": keep, **self.weights}
        own = untrained_identity(self.spec.recipe, untrained)
        return self._key("untrained", part) | {"keep": keep, **own}

    @property
    def extractor_identity(self) -> dict[str, Any]:
        """Name and identity of the network of the Fréchet distance."""
        return {"name": self.network.name, **self.network.identity}

    def _perturbed_key(self, kind: PerturbedKind) -> Key:
        return self._key(kind, "test") | {
            "extractor": self.extractor_identity,
            "rates": list(RATES),
            "seed": SEED,
            **self.weights,
        }

    def _key(self, kind: PassKind, part: str) -> Key:
        return {"kind": kind, **batches_key(self.splits.batches[part])}

    def _features(self, part: str, keep: int, untrained: int | None) -> Features:
        return self.over(
            part,
            lambda: self.features_key(part, keep, untrained),
            lambda batches: FeaturesJob(batches, keep, untrained),
        )

    def over(
        self,
        part: str,
        key: Callable[[], Mapping[str, Any]],
        job: Callable[[ImageBatches], BatchesJob[Result]],
    ) -> Result:
        """The merged result of a job over all batches of a part; `key` is asked for anew once images are left out."""

        def over(batches: EvalBatches) -> Result:
            jobs = [
                job(ImageBatches(batches.dataset.split, numbers, batches.left_out))
                for numbers in jobs_of_batches(batches.num_batches, BATCHES_PER_JOB)
            ]
            return self.passes.result(key(), jobs)

        return self.splits.over(part, over)


@lru_cache(maxsize=4)
def lpips_identity(files: LpipsFilesConfig) -> dict[str, Any]:
    """The identity of LPIPS with these files: numbers with the same one can be compared."""
    return LpipsDistance(files).identity


@lru_cache(maxsize=4)
def lpips_name(files: LpipsFilesConfig) -> str:
    """The metric's name of LPIPS with these files."""
    return LpipsDistance(files).name
