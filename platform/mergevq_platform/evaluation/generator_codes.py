"""Codes of real images beside a generator's: those that the position baseline draws from, and the counts of held-out images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.ragged import NO_TOKEN
from mergevq.rng import Stream, uniforms
from mergevq_platform.codes import CodeSet, open_codes
from mergevq_platform.codes.codeset import fit_width
from mergevq_platform.data import EvalBatches, to_unit_range
from mergevq_platform.evaluation.spec import split_batches
from mergevq_platform.recipe import Recipe
from mergevq_platform.sampling.pipeline import SamplingPipeline

POSITION_ROWS = 4096  # training views whose codes the position baseline draws from


@dataclass(frozen=True)
class PositionBaseline:
    """Codes of training views; the baseline draws the code of each position from those at that position.

    In random order a position means something among images that keep as many tokens alone: there it draws from these.
    """

    indices: np.ndarray  # (R, P) int64 of P cells, or of P kept tokens in random order, padded with -1
    kept: (
        np.ndarray | None
    )  # (R,) int64, the kept count of each where they differ and positions are of kept tokens

    @classmethod
    def of(cls, pipeline: SamplingPipeline) -> PositionBaseline:
        """Up to `POSITION_ROWS` training views at the spec's kept count; where these have their own, more, until each count is there."""
        recipe, keep = pipeline.recipe, pipeline.spec.keep
        task = recipe.generator
        codes = open_codes(task.codes, recipe.data.train_split) if task.codes else None
        random_order = task.model.kind == "random_order"
        by_count = random_order and codes is not None and codes.ragged
        missing = _stored_keeps(codes, keep) if codes is not None and by_count else set()
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for indices, assignment, kept in _groups(codes, keep) if codes else _encoded(pipeline):
            if sum(len(rows) for rows, _ in found) >= POSITION_ROWS and not missing:
                break
            found.append((indices if random_order else np.take_along_axis(indices, assignment, 1), kept))
            missing -= set(kept.tolist())
        width = max(rows.shape[1] for rows, _ in found)
        joined = np.concatenate([fit_width(rows, width) for rows, _ in found])
        return cls(joined, np.concatenate([kept for _, kept in found]) if by_count else None)

    def codes(self, sample_ids: Tensor, seed: int, counts: Tensor | int | None) -> Tensor:
        """Codes (B, P) of samples, by (seed, sample); of kept `counts`, (B,) or one for all, where these matter, padded with -1."""
        ids = sample_ids.tolist()
        if self.kept is None:
            return torch.from_numpy(np.stack([_drawn(self.indices, seed, sample) for sample in ids]))
        each = counts.tolist() if isinstance(counts, Tensor) else [counts] * len(ids)
        drawn = np.full((len(ids), max(each)), NO_TOKEN, dtype=np.int64)
        for row, (sample, count) in enumerate(zip(ids, each, strict=True)):
            drawn[row, :count] = _drawn(self.indices[self.kept == count, :count], seed, sample)
        return torch.from_numpy(drawn)


def stored_counts(recipe: Recipe, images: EvalBatches) -> np.ndarray:
    """The kept counts (R,) int64 that the rows of the evaluation split have in the code set; 0 where it holds none.

    Raises `InputError` for a code set of other images, and without one of those that are evaluated.
    """
    task, split = recipe.generator, recipe.data.evaluation_split
    assert task.codes is not None
    codes = open_codes(task.codes, split)
    if codes.manifest.plan["data_fingerprints"].get(codes.split) != images.dataset.fingerprint:
        raise InputError(
            f"{images.dataset.path}: {task.codes} says the kept counts of other images: give --keep, one count for all, or the "
            "images that it was made of"
        )
    counts = np.zeros(images.dataset.rows, dtype=np.int64)
    for number in range(len(codes.places)):
        group = codes.group(number)
        plain = group.crop == 0  # the view that is evaluated
        counts[group.sample[plain]] = group.keep[plain]
    if lacking := int((counts[np.asarray(images.rows)] == 0).sum()):
        raise InputError(f"{task.codes} lacks {lacking} of the images of '{split}': tokenize again")
    return counts


def _drawn(codes: np.ndarray, seed: int, sample: int) -> np.ndarray:
    positions = np.arange(codes.shape[1])
    chosen = uniforms(len(positions), seed, Stream.POSITION_BASELINE, sample) * len(codes)
    drawn: np.ndarray = codes[chosen.astype(int), positions]
    return drawn


def _stored_keeps(codes: CodeSet, keep: int | None) -> set[int]:
    """The counts that are drawn from. Raises `InputError` for one that no training view has."""
    found = codes.histogram()
    stored = {count for count, views in zip(found.counts, found.views, strict=True) if views}
    if keep is not None and keep not in stored:
        raise InputError(
            f"--keep {keep}: no image of {codes.path} keeps so many, which the baseline of codes by position needs: set "
            f"task.generation.baselines=false, or take one of {', '.join(map(str, sorted(stored)))}"
        )
    return stored if keep is None else {keep}


Group = tuple[np.ndarray, np.ndarray, np.ndarray]  # indices (b, K), assignment (b, N), kept counts (b,)


def _groups(codes: CodeSet, keep: int | None) -> Iterator[Group]:
    numbers = range(len(codes.places)) if codes.ragged else codes.groups_of(keep or max(codes.manifest.keeps))
    for number in numbers:
        group = codes.group(number)
        yield group.indices, group.assignment, group.keep


def _encoded(pipeline: SamplingPipeline) -> Iterator[Group]:
    recipe, tokenizer = pipeline.recipe, pipeline.tokenizer
    batches = split_batches(recipe, recipe.data.path, recipe.data.train_split)
    for index in range(batches.num_batches):
        if (batch := batches.readable(index)) is not None:
            images = to_unit_range(batch, pipeline.device)["image"]
            encoded = tokenizer.encode(images, pipeline.spec.keep or tokenizer.grid_tokens)
            arrays = encoded.indices.cpu().numpy(), encoded.source.assignment.cpu().numpy()
            yield *arrays, np.full(len(images), arrays[0].shape[1])
