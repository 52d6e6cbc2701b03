"""Configurations of allocators: how the kept count of each image is chosen."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from mergevq.config import config
from mergevq.metrics.lpips import LpipsFilesConfig
from mergevq.number_types import Count


@config
class FixedAllocatorConfig:
    """One kept count for all images."""

    kind: Literal["fixed"] = "fixed"


@config
class CompressedSizeAllocatorConfig:
    """As many tokens as the bytes of the image as a JPEG pay for: the baseline that needs no tokenizer."""

    kind: Literal["compressed_size"] = "compressed_size"
    quality: Annotated[int, pydantic.Field(ge=1, le=95)] = 75  # of the JPEG, as Pillow counts it


@config
class SimilarityAllocatorConfig:
    """Merging ends where the next match would be less alike than a threshold."""

    kind: Literal["similarity"] = "similarity"


@config
class OracleAllocatorConfig:
    """The distortion of every count, measured: the bound that other allocators are compared with."""

    kind: Literal["oracle"] = "oracle"
    lpips: LpipsFilesConfig | None = (
        None  # the distortion is LPIPS with these files; none: the mean squared error
    )


@config
class LearnedAllocatorConfig:
    """A head of one hidden layer predicts the distortion of every count from the grid tokens, pooled over the grid."""

    kind: Literal["learned"] = "learned"
    hidden: Count = 32  # width of the hidden layer


AllocatorConfig = Annotated[
    FixedAllocatorConfig
    | SimilarityAllocatorConfig
    | CompressedSizeAllocatorConfig
    | OracleAllocatorConfig
    | LearnedAllocatorConfig,
    pydantic.Field(discriminator="kind"),
]

KINDS = {  # those that have no weights, by their names
    "fixed": FixedAllocatorConfig,
    "similarity": SimilarityAllocatorConfig,
    "compressed_size": CompressedSizeAllocatorConfig,
    "oracle": OracleAllocatorConfig,
}
