"""Sampling: labels and kept count in, codes out. A generator is passed in; what decodes is its order."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.generation import random_order, raster
from mergevq.generation.code_sampler import CodeSampler
from mergevq.generation.config import GeneratorConfig, MergeARConfig, RandomOrderConfig, RasterConfig
from mergevq.generation.model import Generator
from mergevq.generation.packed_linear import packed_for
from mergevq.generation.sampling_config import GuidanceConfig, SamplingConfig
from mergevq.rng import sample_uniforms

# Streams of random numbers of one sample.
CODES, ORDER = 0, 1


class Generated(NamedTuple):
    """Sampled codes and their cost."""

    indices: (
        Tensor  # (B, N) int64 of all cells in raster order, or (B, K) of the kept tokens in canonical order
    )
    steps: int  # passes through the transformer
    cache_bytes: int  # keys and values at their peak


@torch.inference_mode()
def sample(
    generator: Generator,
    labels: Tensor,
    *,
    keep: int | None = None,
    sample_ids: Tensor,
    seed: int,
    sampling: SamplingConfig | None = None,
    guidance: GuidanceConfig | None = None,
    steps: int | None = None,
    compress: bool = True,
    limit_distinct: bool = False,
    order: Tensor | None = None,
    fixed: Tensor | None = None,
    fixed_mask: Tensor | None = None,
) -> Generated:
    """Sample codes for labels (B,) int64, -1 for no class.

    The random numbers of sample i are a function of (seed, sample_ids[i]) alone, those of one code besides of its
    position in the image: which other samples are in the batch changes nothing but rounding.

    MergeAR: `compress` drops the keys and values of repeated codes (else they are masked, with the same result);
    `limit_distinct` lets no new code appear after `keep` different ones. Random order: `steps` is the number of
    passes, on the arccosine schedule, one token each where it is None; `order` (B, K) gives the order of
    decoding in place of a random one; codes `fixed` (B, K) stay where `fixed_mask` (B, K) bool is set and come
    first, the steps being spread over the others. Raises `InputError` for a label or kept count that was not
    trained, more steps than tokens, and options of another kind.
    """
    config = generator.config
    sampling, guidance = sampling or SamplingConfig(), guidance or GuidanceConfig()
    keep = _checked_keep(generator, keep)
    _check_samples(config.classes, labels, sample_ids)
    sub_tokens = len(config.sub_bits)
    sampler = CodeSampler(generator.tokens, sampling.per_sub_token(sub_tokens), guidance)
    guidance.scales(0.0, sub_tokens)
    _check_kind(config, steps, limit_distinct, {"order": order, "fixed": fixed, "fixed_mask": fixed_mask})
    tokens = keep if isinstance(config, RandomOrderConfig) else config.grid_tokens
    uniforms = sample_uniforms(seed, sample_ids, tokens * sub_tokens, stream=CODES)
    uniforms = uniforms.view(len(labels), tokens, sub_tokens).to(labels.device)

    # Compiled blocks have their own layout of weights.
    with contextlib.nullcontext() if generator.compiled else packed_for(generator, 2 * len(labels)):
        if isinstance(config, RandomOrderConfig):
            if order is None:
                order = sample_uniforms(seed, sample_ids, keep, stream=ORDER).argsort(1)
            decoded = random_order.decode(
                generator,
                sampler,
                labels,
                keep=keep,
                order=order.to(labels.device),
                uniforms=uniforms,
                steps=steps,
                fixed=fixed,
                fixed_mask=fixed_mask,
            )
            return Generated(*decoded)

        decoded = raster.decode(
            generator,
            sampler,
            labels,
            keep=keep,
            uniforms=uniforms,
            compress=compress,
            limit_distinct=limit_distinct,
        )
        return Generated(*decoded)


def _checked_keep(generator: Generator, keep: int | None) -> int:
    config = generator.config
    generator.keep_index(keep)
    if isinstance(config, RasterConfig):
        if keep not in (None, config.grid_tokens):
            raise InputError(
                f"keep is {keep}: a raster generator always makes all {config.grid_tokens} cells, leave keep out"
            )
        return config.grid_tokens
    return config.keeps[0] if keep is None else keep


def _check_kind(
    config: GeneratorConfig,
    steps: int | None,
    limit_distinct: bool,
    of_random_order: dict[str, Tensor | None],
) -> None:
    """Raise `InputError` for options of another kind of generator."""
    if limit_distinct and not isinstance(config, MergeARConfig):
        raise InputError(f"limit_distinct belongs to mergear; this generator is {config.kind}")
    if isinstance(config, RandomOrderConfig):
        return
    for name, value in of_random_order.items():
        if value is not None:
            raise InputError(f"{name} belongs to random_order; this generator is {config.kind}")
    if steps not in (None, config.grid_tokens):
        raise InputError(
            f"steps is {steps}: {config.kind} decodes its {config.grid_tokens} cells one by one, leave steps out"
        )


def _check_samples(classes: int, labels: Tensor, sample_ids: Tensor) -> None:
    if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < classes:
        wrong = next(label for label in labels.tolist() if not -1 <= label < classes)
        raise InputError(
            f"class {wrong} is out of range: this generator knows 0 to {classes - 1} (-1: no class)"
        )
    if sample_ids.shape != labels.shape:
        raise InputError(f"{len(sample_ids)} sample_ids for {len(labels)} labels: give one each")
