"""Sampling: labels and kept count in, codes out. A generator is passed in; what decodes is its order."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.generation import random_order, raster
from mergevq.generation.code_sampler import CodeSampler
from mergevq.generation.config import (
    GeneratorConfig,
    MergeARConfig,
    RandomOrderConfig,
    RasterConfig,
    is_ragged,
)
from mergevq.generation.counts import draw_counts
from mergevq.generation.model import Generator
from mergevq.generation.packed_linear import packed_for
from mergevq.generation.sampling_config import GuidanceConfig, SamplingConfig
from mergevq.inputs import kept_counts
from mergevq.ragged import NO_TOKEN, joined, rows_by_count
from mergevq.rng import sample_uniforms

# Streams of random numbers of one sample.
CODES, ORDER = 0, 1


class Generated(NamedTuple):
    """Sampled codes and their cost."""

    indices: Tensor  # (B, N) int64 of all cells in raster order, or (B, K) of the kept tokens in canonical order, padded with -1
    steps: int  # passes through the transformer
    cache_bytes: int  # keys and values at their peak


@torch.inference_mode()
def sample(
    generator: Generator,
    labels: Tensor,
    *,
    keep: int | Sequence[int] | Tensor | None = None,
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

    `keep`: a kept count for all, or (B,) for each, whose codes and orders are then padded at the end. None: that of a
    generator of one; of a ragged one, counts drawn from the histogram of what it learnt from (`draw_counts`).

    MergeAR: `compress` drops the keys and values of repeated codes (else they are masked, with the same result);
    `limit_distinct` lets no new code appear after `keep` different ones. Random order: `steps` is the number of
    passes, on the arccosine schedule, one token each where it is None, and never more than an image of many counts has
    tokens; `order` (B, K) gives the order of decoding in place of a random one; codes `fixed` (B, K) stay where
    `fixed_mask` (B, K) bool is set and come first, the steps being spread over the others. Raises `InputError` for a label
    or kept count that was not trained, more steps than tokens, and options of another kind.
    """
    config = generator.config
    sampling, guidance = sampling or SamplingConfig(), guidance or GuidanceConfig()
    if keep is None and is_ragged(config):
        _check_samples(config.classes, labels, sample_ids)
        keep = draw_counts(generator.count_histogram, config.keeps, labels, sample_ids=sample_ids, seed=seed)
    counts = _checked_keep(generator, keep, len(labels))
    _check_samples(config.classes, labels, sample_ids)
    sub_tokens = len(config.sub_bits)
    sampler = CodeSampler(generator.tokens, sampling.per_sub_token(sub_tokens), guidance)
    guidance.scales(0.0, sub_tokens)
    _check_kind(config, steps, limit_distinct, {"order": order, "fixed": fixed, "fixed_mask": fixed_mask})

    # Compiled blocks have their own layout of weights.
    with contextlib.nullcontext() if generator.compiled else packed_for(generator, 2 * len(labels)):
        if isinstance(config, RandomOrderConfig):
            drawing = _RandomOrder(generator, sampler, seed, steps)
            given = _Given(labels, sample_ids, order, fixed, fixed_mask)
            return drawing.each(given, counts) if isinstance(counts, list) else drawing.all(given, counts)
        tokens = config.grid_tokens
        uniforms = sample_uniforms(seed, sample_ids, tokens * sub_tokens, stream=CODES)
        decoded = raster.decode(
            generator,
            sampler,
            labels,
            keep=torch.tensor(counts, device=labels.device) if isinstance(counts, list) else counts,
            uniforms=uniforms.view(len(labels), tokens, sub_tokens).to(labels.device),
            compress=compress,
            limit_distinct=limit_distinct,
        )
        return Generated(*decoded)


class _Given(NamedTuple):
    """What a batch of random order is asked for, a row each."""

    labels: Tensor
    sample_ids: Tensor
    order: Tensor | None
    fixed: Tensor | None
    fixed_mask: Tensor | None

    def of(self, rows: list[int], keep: int) -> _Given:
        """Some rows, without what is padded beyond `keep` tokens."""
        wide = (None if part is None else part[rows, :keep] for part in self[2:])
        return _Given(self.labels[rows], self.sample_ids[rows], *wide)


@dataclass(frozen=True)
class _RandomOrder:
    """Decoding of batches in random order: of one kept count, or of one for each sample."""

    generator: Generator
    sampler: CodeSampler
    seed: int
    steps: int | None

    def all(self, given: _Given, keep: int) -> Generated:
        """Samples of `keep` tokens each."""
        device, sub_tokens, order = given.labels.device, len(self.sampler.settings), given.order
        uniforms = sample_uniforms(self.seed, given.sample_ids, keep * sub_tokens, stream=CODES)
        if order is None:
            order = sample_uniforms(self.seed, given.sample_ids, keep, stream=ORDER).argsort(1)
        decoded = random_order.decode(
            self.generator,
            self.sampler,
            given.labels,
            keep=keep,
            order=order.to(device),
            uniforms=uniforms.view(len(given.labels), keep, sub_tokens).to(device),
            steps=self.steps,
            fixed=given.fixed,
            fixed_mask=given.fixed_mask,
        )
        return Generated(*decoded)

    def each(self, given: _Given, counts: list[int]) -> Generated:
        """Samples of `counts` tokens; those of one count are decoded together, so that a sample never depends on the others."""
        groups = rows_by_count(counts)
        if self.steps is not None:
            random_order.arccos_schedule(max(counts), self.steps)  # raises for more steps than tokens
        parts = [
            replace(self, steps=None if self.steps is None else min(self.steps, keep)).all(
                given.of(rows, keep), keep
            )
            for keep, rows in groups.items()
        ]
        indices = joined([part.indices for part in parts], list(groups.values()), dim=1, fill=NO_TOKEN)
        return Generated(indices, max(part.steps for part in parts), max(part.cache_bytes for part in parts))


def _checked_keep(
    generator: Generator, keep: int | Sequence[int] | Tensor | None, batch: int
) -> int | list[int]:
    """One count for all, or a list of different ones. Raises `InputError` for one that was not trained."""
    config = generator.config
    if keep is not None:
        counts = kept_counts(keep, batch)
        if isinstance(counts, list):
            for count in set(counts):
                _checked_keep(generator, count, batch)
            if len(set(counts)) > 1:
                return counts
            keep = counts[0] if counts else None if isinstance(config, RasterConfig) else config.keeps[0]
        else:
            keep = counts
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
