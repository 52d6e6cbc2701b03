"""Generator configurations: the transformer's size, and the three orders in which codes are predicted."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeGuard

import pydantic

from mergevq.config import config, parse
from mergevq.image_size import square_grid
from mergevq.number_types import Count, ProperFraction


@config
class TransformerConfig:
    """A Llama-style transformer (section 6.1): RMSNorm, SwiGLU, 2-D rotary positions.

    `prefix_rotation`: what stands in for a position at the class and kept-count tokens. `identity` leaves their
    queries and keys as they are. `zero` is LlamaGen's and RandAR's table, whose rows for them are all zero: their
    keys then count as a logit of 0 for every query, whatever the class. We start from `identity`, which loses
    nothing; `zero` is for weights that were trained with it.
    """

    depth: Count
    width: Count
    heads: Count
    hidden: Count | None = None  # of the SwiGLU; None: int(2/3 * 4 * width) rounded up to a multiple of 256
    qk_norm: bool = False
    dropout: ProperFraction = 0.1  # of each residual branch
    token_dropout: ProperFraction = 0.1  # of the embedded sequence's elements
    rope_base: Annotated[float, pydantic.Field(gt=1)] = 10000.0
    prefix_rotation: Literal["identity", "zero"] = "identity"

    def __post_init__(self) -> None:
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width {self.width} must be a multiple of 4 x heads {self.heads}: rotary positions turn two pairs per axis"
            )

    @property
    def ffn_width(self) -> int:
        """Hidden channels of the SwiGLU."""
        return self.hidden or math.ceil(int(2 / 3 * 4 * self.width) / 256) * 256

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@config
class _CodesConfig:
    """A class-conditional transformer over factorised codes; all generators share it."""

    transformer: TransformerConfig
    classes: Count
    grid_tokens: Count  # N of the tokenizer
    grid: tuple[Count, Count] | None = None  # rows and columns of the N cells; none: a square
    bits: Annotated[int, pydantic.Field(ge=1, le=40)] = 18  # G of the tokenizer's LFQ
    split: tuple[
        Annotated[int, pydantic.Field(ge=1, le=16)], ...
    ] = ()  # bits per sub-token; (): a third, the rest
    intra_depth: Count = 2  # layers of the transformer over one cell's sub-tokens
    label_drop: ProperFraction = 0.1  # how often training hides the class, for guidance

    def __post_init__(self) -> None:
        if self.split and sum(self.split) != self.bits:
            raise ValueError(
                f"split {list(self.split)} has {sum(self.split)} bits, the codes have {self.bits}"
            )
        if self.grid is None and square_grid(self.grid_tokens) is None:
            raise ValueError(
                f"grid_tokens {self.grid_tokens} is not a square number: give grid, the tokenizer's [rows, columns]"
            )
        if math.prod(self.rows_columns) != self.grid_tokens:
            raise ValueError(
                f"grid {list(self.rows_columns)} does not have the {self.grid_tokens} cells of grid_tokens"
            )
        if max(self.sub_bits) > 16:
            raise ValueError(
                f"sub-tokens of {max(self.sub_bits)} bits are too many: give split, at most 16 each"
            )

    @property
    def sequence_kind(self) -> Literal["cells", "kept"]:
        """Whether samples are the codes of all N cells or of the K kept tokens."""
        return "cells"

    @property
    def rows_columns(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        found = self.grid or square_grid(self.grid_tokens)
        assert found is not None
        return found

    @pydantic.model_serializer(mode="wrap")
    def _stored(self, tree_of: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = tree_of(self)
        if self.grid is None:
            del tree["grid"]  # a square's tree is that of before there were others
        if not tree.get("ragged"):
            tree.pop("ragged", None)  # likewise of a generator whose batches have one count
        return tree

    @property
    def sub_bits(self) -> tuple[int, ...]:
        """Bits of each sub-token, lowest bits first; (6, 12) for 18 bits."""
        if self.split or self.bits < 3:
            return self.split or (self.bits,)
        return self.bits // 3, self.bits - self.bits // 3


@config
class _KeepConditionedConfig(_CodesConfig):
    """Generators that are conditioned on the kept count.

    `ragged`: they learn from images of which each keeps its own count, and carry the histogram of these counts by class.
    """

    keeps: tuple[Count, ...]  # the kept counts that can be trained and asked for
    ragged: bool = False  # every image of the codes has its own kept count; set where the code set is such

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.keeps or len(set(self.keeps)) != len(self.keeps):
            raise ValueError(f"keeps {list(self.keeps)} must name each kept count once, and at least one")
        if max(self.keeps) > self.grid_tokens:
            raise ValueError(f"keeps has {max(self.keeps)}, more than the {self.grid_tokens} grid tokens")
        if self.ragged and len(self.keeps) < 2:
            raise ValueError(
                f"keeps {list(self.keeps)} is one count: images of different counts need several"
            )


@config
class RasterConfig(_CodesConfig):
    """All N cells in raster order, each with its cluster's code (LlamaGen over MergeVQ's codes)."""

    kind: Literal["raster"] = "raster"


@config
class MergeARConfig(_KeepConditionedConfig):
    """Raster order with a merge token in front and repeated codes hidden after `window` cells (section 4.1).

    `duplicates`: which cells count as repetitions in training. `code`: an earlier cell has the same code, as at inference;
    `cluster`: an earlier cell has the same cluster, as printed.
    """

    kind: Literal["mergear"] = "mergear"
    window: Count = 2
    duplicates: Literal["code", "cluster"] = "code"


@config
class RandomOrderConfig(_KeepConditionedConfig):
    """The K kept codes in random order, each announced by a position-instruction token (RandAR; section 4.2).

    Kept token r stands at row r // w, column r % w of a grid w = ceil(sqrt(K)) wide, in canonical order; the last row
    is part empty where K is not a square. `positions`: `rank` counts these rows and columns, `stretched` scales them
    to those of the image's grid, so that all kept counts share one frame. A kept-count token joins the class token where
    there is more than one kept count.
    """

    kind: Literal["random_order"] = "random_order"
    positions: Literal["rank", "stretched"] = "rank"

    @property
    def sequence_kind(self) -> Literal["cells", "kept"]:
        return "kept"


GeneratorConfig = Annotated[
    RasterConfig | MergeARConfig | RandomOrderConfig, pydantic.Field(discriminator="kind")
]


@config
class _GeneratorTree:
    generator: GeneratorConfig


def is_ragged(config: GeneratorConfig) -> TypeGuard[MergeARConfig | RandomOrderConfig]:
    """Whether a generator learns from images of which each keeps its own count."""
    return not isinstance(config, RasterConfig) and config.ragged


def parse_generator(tree: Any, *, where: str = "") -> GeneratorConfig:
    """A generator's configuration from its plain tree. Raises `InputError` naming every wrong key."""
    return parse(_GeneratorTree, {"generator": tree}, where=where).generator


@config
class GeneratorTrainingConfig:
    """The loss of stage 2: cross-entropy of every sub-token, smoothed as published."""

    label_smoothing: ProperFraction = 0.1
