"""The protocol of allocators' numbers: data, weights, calibration, equal quality, bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mergevq
from mergevq.allocation import Menu
from mergevq.metrics import distance_name
from mergevq_platform.allocation.allocator_ref import AllocatorRef
from mergevq_platform.data.parquet.background import DROPPED
from mergevq_platform.data.views import RESIZING, evaluation_view_text
from mergevq_platform.evaluation.equal_quality import RESAMPLES
from mergevq_platform.evaluation.tokenizer import CAVEATS
from mergevq_platform.evaluation.tokenizer_passes import TokenizerPasses, lpips_identity

EQUAL_QUALITY = (
    "Tokens saved: the fewest tokens of one count for all that have the same mean PSNR (linear between the counts of the menu, and no "
    "more than its last), less the mean kept; 95% intervals over resampled images, each image's count held fixed. The oracle minimises the "
    "squared error, at equal mean of which they are given too."
)
BITS = (
    "Bits per image: of the codes (kept tokens times log2 of the vocabulary); of the count (log2 of the menu's size; none where one is for "
    "all); of the source, any assignment of cells to kept tokens being as likely as another: spent where it is sent, as for these "
    "reconstructions, and none where Source Recovery predicts it, which is not measured here."
)


def rate_distortion_protocol(
    passes: TokenizerPasses,
    allocators: Sequence[AllocatorRef],
    menu: Menu,
    step: int | None,
    lacking: Mapping[str, str],
) -> dict[str, Any]:
    """The protocol of a report of allocators; `step`: see `RateDistortionEvaluator`, `lacking` what the data do not allow."""
    recipe, evaluated, learned = (
        passes.spec.recipe,
        passes.splits.batches["test"],
        passes.splits.batches["train"],
    )
    settings = recipe.evaluation
    protocol: dict[str, Any] = {
        "frechet_key": distance_name(passes.network, "reconstruction"),
        "extractor": passes.extractor_identity,
        **({"lpips": lpips_identity(settings.lpips)} if settings.lpips else {}),
        "images": evaluated.images,
        "split": recipe.data.evaluation_split,
        "data": passes.spec.data,
        "data_fingerprint": evaluated.dataset.fingerprint,
        "preprocessing": f"{evaluation_view_text(recipe.data.views.image_size)}; reconstructions rounded to uint8",
        "background": evaluated.dataset.background or DROPPED,
        "resizing": RESIZING,
        "ema": step is not None,
        "step": step,
        "checkpoint": passes.spec.checkpoint,
        **passes.weights,
        "menu": list(menu),
        "grid_tokens": recipe.tokenizer.model.grid_tokens,
        "allocators": {ref.name: ref.identity for ref in allocators},
        "calibration": {
            "split": learned.dataset.split,
            "images": learned.images,
            "data_fingerprint": learned.dataset.fingerprint,
        },
        "source": "true",
        "psnr": "mean over images; an exact image counts as one with a single value off by one level",
        "equal_quality": EQUAL_QUALITY,
        "resamples": RESAMPLES,
        "bits": BITS,
        "batch": settings.batch,
        "mergevq": mergevq.__version__,
        "caveat": CAVEATS.get(recipe.tokenizer.losses.alignment.kind, ""),
    }
    if lacking:
        protocol["lacking"] = dict(lacking)
    if passes.splits.bad:
        protocol["left_out"] = passes.splits.left_out
    if "probe" not in lacking:
        protocol["probe"] = {
            "kind": "logistic regression on standardised features, C chosen on held-out training images",
            "train_images": learned.images,
            "tokens": "every image at its own count, in training and evaluated images alike",
        }
    return protocol
