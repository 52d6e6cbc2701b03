"""Sentences on the suites beside those of every curve, from its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def suite_sentences(protocol: Mapping[str, Any]) -> list[str]:
    """What pFID, code histograms, KID, density, coverage and the AR probe are, where the protocol has them."""
    sentences = []
    if perturbed := protocol.get("generability"):
        low, high = min(perturbed["rates"]), max(perturbed["rates"])
        deltas = ", ".join(f"{delta:,}" for delta in perturbed["strengths"])
        sentences.append(
            f"{perturbed['frechet_key']}: the same of codes of which {low:.0%} to {high:.0%} of an image's tokens are each one of the "
            f"{deltas} nearest codes, mean over all combinations; of the source: true codes, as many cells given to draws of Source "
            "Recovery. Code histograms: Hellinger distance to those of the reconstructions encoded again, and of two halves of the "
            "images."
        )
    if distribution := protocol.get("distribution"):
        sentences.append(
            f"Kernel distance: {distribution['kid']}; density and coverage: {distribution['density_coverage']}; all of the features of "
            "the Fréchet distance."
        )
    if probe := protocol.get("ar_probe"):
        sentences.append(
            f"{probe['name']}: a transformer of {probe['depth']} layers and width {probe['width']}, {probe['steps']} steps of "
            f"{probe['batch']} images on the codes of {probe['train_images']:,} training images, no class. Bits: of a held-out image's "
            f"codes, nothing of the source; Fréchet distance: {probe['samples']:,} samples, source predicted."
        )
    return sentences


def kernel_title(key: str, standard: str) -> str:
    """The title of a kernel distance: KID is what the standard Inception measured, under the key `standard`."""
    return "KID" if key == standard else "kernel distance"
