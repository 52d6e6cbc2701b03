"""Sampling: checks what was asked, draws the random numbers of each sample, and decodes in the generator's order."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from mergevq.errors import InputError
from mergevq.generation import random_order, raster
from mergevq.generation.cfg import Drawing
from mergevq.generation.config import MergeARConfig, RandomOrderConfig, RasterConfig
from mergevq.generation.guidance import GuidanceConfig
from mergevq.generation.sampling import SamplingConfig, uniforms

if TYPE_CHECKING:
    from mergevq.generation.model import Generator

# Streams of random numbers of one sample.
CODES, ORDER = 0, 1


class Generated(NamedTuple):
    """Sampled codes and what they took."""

    indices: (
        Tensor  # (B, N) int64 of all cells in raster order, or (B, K) of the kept tokens in canonical order
    )
    steps: int  # passes through the transformer
    cache_bytes: int  # keys and values at their peak


def generate(
    generator: Generator,
    labels: Tensor,
    *,
    keep: int | None,
    sample_ids: Tensor,
    seed: int,
    sampling: SamplingConfig,
    guidance: GuidanceConfig,
    steps: int | None,
    compress: bool,
    limit_distinct: bool,
    order: Tensor | None,
    fixed: Tensor | None,
    fixed_mask: Tensor | None,
) -> Generated:
    """See `Generator.generate`."""
    config = generator.config
    keep = _checked(generator, labels, keep, sample_ids)
    sub_tokens = len(config.sub_bits)
    drawing = Drawing(generator.tokens, sampling.per_sub_token(sub_tokens), guidance)
    guidance.scales(0.0, sub_tokens)

    if isinstance(config, RandomOrderConfig):
        if limit_distinct:
            raise InputError("limit_distinct belongs to mergear; this generator is random_order")
        numbers = uniforms(seed, sample_ids, keep * sub_tokens, stream=CODES).view(
            len(labels), keep, sub_tokens
        )
        if order is None:
            order = uniforms(seed, sample_ids, keep, stream=ORDER).argsort(1)
        return Generated(
            *random_order.decode(
                generator,
                drawing,
                labels,
                keep=keep,
                order=order.to(labels.device),
                numbers=numbers.to(labels.device),
                steps=steps,
                fixed=fixed,
                fixed_mask=fixed_mask,
            )
        )

    for name, value in {"order": order, "fixed": fixed, "fixed_mask": fixed_mask}.items():
        if value is not None:
            raise InputError(f"{name} belongs to random_order; this generator is {config.kind}")
    if steps not in (None, config.grid_tokens):
        raise InputError(
            f"steps is {steps}: {config.kind} decodes its {config.grid_tokens} cells one by one, leave steps out"
        )
    if limit_distinct and not isinstance(config, MergeARConfig):
        raise InputError(f"limit_distinct belongs to mergear; this generator is {config.kind}")
    numbers = uniforms(seed, sample_ids, config.grid_tokens * sub_tokens, stream=CODES)
    return Generated(
        *raster.decode(
            generator,
            drawing,
            labels,
            keep=keep,
            numbers=numbers.view(len(labels), config.grid_tokens, sub_tokens).to(labels.device),
            compress=compress,
            limit_distinct=limit_distinct,
        )
    )


def _checked(generator: Generator, labels: Tensor, keep: int | None, sample_ids: Tensor) -> int:
    config = generator.config
    generator.keep_row(keep)
    if isinstance(config, RasterConfig):
        if keep not in (None, config.grid_tokens):
            raise InputError(
                f"keep is {keep}: a raster generator always makes all {config.grid_tokens} cells, leave keep out"
            )
        keep = config.grid_tokens
    elif keep is None:
        keep = config.keeps[0]
    if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < config.classes:
        wrong = next(label for label in labels.tolist() if not -1 <= label < config.classes)
        raise InputError(
            f"class {wrong} is out of range: this generator knows 0 to {config.classes - 1} (-1: no class)"
        )
    if sample_ids.shape != labels.shape:
        raise InputError(f"{len(sample_ids)} sample_ids for {len(labels)} labels: give one each")
    return keep
