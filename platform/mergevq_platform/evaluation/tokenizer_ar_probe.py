"""The suite `ar_probe`: how well a small transformer of fixed size learns the codes of a kept count."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mergevq.config import to_tree
from mergevq.metrics import distance_name, frechet_distance
from mergevq.metrics.ar_probe import AR_PROBES
from mergevq.metrics.features import Extractor
from mergevq_platform.evaluation.ar_probe_jobs import ArProbeJob, ArProbeResult, CodesJob
from mergevq_platform.evaluation.spec import batches_key
from mergevq_platform.evaluation.tokenizer_passes import Key, TokenizerPasses

NAME = "ar_probe_v1"
BITS_KEY = f"{NAME}_bits"


@dataclass
class ArProbeSuite:
    """Bits of held-out codes, and the Fréchet distance of the probe's samples; `lacking` is filled on the way."""

    passes: TokenizerPasses
    lacking: dict[str, str]  # what the data or the tokenizer do not allow, and why

    def row(self, keep: int) -> dict[str, float]:
        """The metrics at a kept count."""
        vocabulary, settings = self.passes.spec.recipe.tokenizer.model.quantizer.vocabulary, AR_PROBES[NAME]
        if vocabulary.bit_count() != 1:
            self.lacking["AR probe"] = f"{vocabulary} codes, not a power of two: generators take LFQ's codes"
            return {}
        images = min(self.passes.splits.batches["train"].images, settings.train_images)
        if images < settings.batch:
            self.lacking["AR probe"] = f"{images} training images, fewer than its batch of {settings.batch}"
            return {}
        found = self._probe(keep, vocabulary.bit_length() - 1)
        row = {BITS_KEY: float(found.bits.mean())}
        real = self.passes.reference.pool
        if found.samples is None:
            self.lacking["samples of the AR probe"] = (
                "the tokenizer has no Source Recovery to decode them with"
            )
        elif real.count < 2:
            self.lacking["samples of the AR probe"] = "one image to compare with, which has no covariance"
        else:
            row[samples_key(self.passes.network)] = frechet_distance(real, found.samples)
        return row

    def _probe(self, keep: int, bits: int) -> ArProbeResult:
        train, held_out = (self._codes(part, keep) for part in ("train", "test"))
        key: Key = {
            "kind": "ar_probe",
            "of": [self._codes_key(part, keep) for part in ("train", "test")],
            "probe": ar_probe_tree(),
            "extractor": self.passes.extractor_identity,
        }
        return self.passes.passes.result(key, [ArProbeJob(train, held_out, bits, AR_PROBES[NAME])])

    def _codes(self, part: str, keep: int) -> np.ndarray:
        key, job = partial(self._codes_key, part, keep), partial(CodesJob, keep=keep)
        return self.passes.over(part, key, job)["indices"]

    def _codes_key(self, part: str, keep: int) -> Key:
        images = batches_key(self.passes.splits.batches[part])
        return {"kind": "codes", **images, "keep": keep, **self.passes.weights}


def samples_key(network: Extractor) -> str:
    """The metric name of the Fréchet distance of the probe's samples: `ar_probe_v1_gfid`, `ar_probe_v1_gfd_<extractor>`."""
    return f"{NAME}_{distance_name(network, 'generation')}"


def ar_probe_tree() -> dict[str, Any]:
    """Name and settings of the probe: numbers with the same ones can be compared."""
    return {"name": NAME, **to_tree(AR_PROBES[NAME])}


def ar_probe_protocol(network: Extractor, train_images: int) -> dict[str, Any]:
    """The protocol of the suite's numbers, with the probe's budget."""
    settings = AR_PROBES[NAME]
    return {
        **ar_probe_tree(),
        "train_images": min(train_images, settings.train_images),
        "keys": {"bits": BITS_KEY, "samples": samples_key(network)},
        "codes": "kept tokens in canonical order, each split into sub-tokens; no class",
        "bits": "negative log-likelihood of the codes of a held-out image, mean over images; of the source nothing: neither which "
        "cells a token stands for nor how many",
        "decoding": "Source Recovery finds the source of the samples",
    }
