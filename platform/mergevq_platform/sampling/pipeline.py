"""The sampling pipeline: a trained generator with its tokenizer, classes in, images out. A request is checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq.generation import (
    Generated,
    Generator,
    GuidanceConfig,
    RandomOrderConfig,
    RasterConfig,
    SamplingConfig,
    draw_counts,
    is_ragged,
    mean_count,
    sample,
)
from mergevq.generation.counts import tilt
from mergevq.merging import every_cell
from mergevq.serialization import WEIGHTS, load_generator
from mergevq.tokenizer import MergeVQ
from mergevq_platform.codes import read_manifest
from mergevq_platform.codes.tokenizer import tokenizer_of
from mergevq_platform.data import open_dataset
from mergevq_platform.data.hub import is_at_hand
from mergevq_platform.recipe import Recipe, ResolvedRecipe
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.tokenizer_ref import TokenizerRef


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """A generator and how it is sampled, in a form that travels to workers and into manifests."""

    checkpoint: str  # one checkpoint's directory or URI
    sha256: str  # of the generator's weights file
    step: int
    recipe: ResolvedRecipe
    tokenizer: TokenizerRef
    device: Literal["cpu", "cuda"]
    keep: int | None  # None: a raster generator is not told; of a budget, each sample has its own
    steps: int | None
    seed: int
    sampling: dict[str, Any]
    guidance: dict[str, Any]
    budget: float | None = None  # the mean of counts that are drawn for each sample; None: they are not

    def at_scale(self, scale: float) -> SamplingSpec:
        """The same at another guidance scale."""
        return replace(self, guidance={**self.guidance, "scale": scale})

    def protocol(self) -> dict[str, Any]:
        """The protocol of the codes as plain values: generator, tokenizer, kept tokens, sampling, guidance."""
        task = self.recipe.generator
        kind = task.model.kind
        counts = (
            {}
            if self.budget is None
            else {
                "budget": self.budget,
                "allocator": task.allocator,
                "counts": "drawn for each sample from the histogram of its class in the training codes",
            }
        )
        return counts | {
            "generator": {
                "checkpoint": self.checkpoint,
                "sha256": self.sha256,
                "step": self.step,
                "ema": True,
            },
            "tokenizer": self.tokenizer.to_tree(),
            "kind": kind,
            "kept_tokens": self.keep,
            "source": "recovered" if kind == "random_order" else "generated",
            "steps": self.steps,
            "seed": self.seed,
            "sampling": self.sampling,
            "guidance": self.guidance,
        }


def open_sampling(
    location: str,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    keep: int | None = None,
    budget: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    guidance: GuidanceConfig | None = None,
    tokenizer: str | None = None,
) -> SamplingSpec:
    """The newest generator at a run, checkpoint or URI; settings that are not given are those of the recipe's `task.generation`.

    A generator of codes whose images keep different counts draws one for each sample, unless `keep` is one for all; `budget` is
    another mean of them than that of the codes. `tokenizer`: where its tokenizer lies now, or one with another Source Recovery.
    Raises `InputError` for a kept count that was not trained, a budget of a generator that learnt none, more steps than tokens,
    settings for another number of sub-tokens, and a tokenizer whose codes are not those that were learnt.
    """
    with checkpoints.newest(location, files=checkpoints.MODEL) as directory:
        recipe = checkpoints.recipe_of(directory)
        about = checkpoints.about(directory)
        chosen, mean = counts_to_sample(recipe, directory, keep, budget)
    task, step = recipe.generator, int(about["step"])
    checkpoint = checkpoints.at_step(location, step)
    settings = task.generation
    tokens = chosen or (max(task.kept_counts()) if mean else task.model.grid_tokens)
    if steps is None and settings.steps is not None:
        steps = min(settings.steps, tokens)
    if steps is not None and not isinstance(task.model, RandomOrderConfig):
        raise InputError(
            f"--steps {steps}: a {task.model.kind} generator makes one token after the other: leave --steps out"
        )
    if steps is not None and not 1 <= steps <= tokens:
        raise InputError(f"--steps {steps}: {tokens} tokens take 1 to {tokens} steps; lower it")
    sampling, guidance = sampling or settings.sampling, guidance or settings.guidance
    sampling.per_sub_token(len(task.model.sub_bits))
    guidance.scales(0.5, len(task.model.sub_bits))
    return SamplingSpec(
        checkpoint=checkpoint,
        sha256=about["sha256"][WEIGHTS],
        step=step,
        recipe=recipe,
        tokenizer=tokenizer_of(recipe, tokenizer),
        device=device,
        keep=chosen,
        steps=steps,
        seed=seed,
        sampling=to_tree(sampling),
        guidance=to_tree(guidance),
        budget=mean,
    )


def counts_to_sample(
    recipe: Recipe, directory: Path, keep: int | None, budget: float | None
) -> tuple[int | None, float | None]:
    """The kept count to sample at, or None and the mean of those that are drawn for each sample (None: there are none).

    `directory` holds the generator. Raises `InputError` as `open_sampling`.
    """
    task = recipe.generator
    if keep is not None and budget is not None:
        raise InputError(
            f"--keep {keep} is one count for all and --budget {budget:g} a mean of many: give one"
        )
    budget = budget if budget is not None or keep is not None else task.generation.budget
    ragged = is_ragged(task.model)
    own = ragged and budget == task.budget  # the mean that the codes were made for: theirs, as it was reached
    if budget is not None and not ragged:
        raise InputError(
            f"--budget {budget:g}: this generator learnt batches of one kept count and no histogram of counts: give --keep, "
            "or train one on `mergevq tokenize --budget`"
        )
    if not ragged or keep is not None or (budget is None and task.generation.keep is not None):
        return keep_to_sample(recipe, keep), None
    assert not isinstance(task.model, RasterConfig)
    with safe_open(directory / WEIGHTS, framework="pt") as tensors:
        histogram = tensors.get_tensor("count_histogram")
    if budget is None or own:
        return None, mean_count(histogram, task.model.keeps)
    tilt(histogram.sum(0).double(), task.model.keeps, budget)  # raises for a mean that they cannot have
    return None, budget


def keep_to_sample(recipe: Recipe, keep: int | None) -> int | None:
    """The kept count to sample at: the given one, the recipe's, or the most often trained; None for raster order.

    Raises `InputError` for a count that was not trained.
    """
    task = recipe.generator
    if task.model.kind == "raster":
        if keep is not None:
            raise InputError(f"--keep {keep}: a raster generator is not told a kept count: leave --keep out")
        return None
    trained = recipe.task.kept_counts()
    if keep is None:
        keep = task.generation.keep
    if keep is None and task.keep is not None:
        probabilities = task.keep.probabilities(task.model.grid_tokens)
        keep = trained[max(range(len(trained)), key=lambda i: probabilities[i])]
    if keep not in trained:
        known = ", ".join(map(str, trained))
        raise InputError(
            f"--keep {keep}: this generator was trained at {known} kept tokens; choose one of them"
        )
    return keep


class SamplingPipeline:
    """One process's generator and tokenizer, in evaluation mode."""

    def __init__(self, spec: SamplingSpec) -> None:
        self.spec = spec
        self.recipe = spec.recipe
        self.device = torch.device(spec.device)
        self.sampling = parse(SamplingConfig, spec.sampling)

    @cached_property
    def generator(self) -> Generator:
        """The trained generator (averaged weights)."""
        with checkpoints.newest(self.spec.checkpoint, files=checkpoints.MODEL) as directory:
            return load_generator(directory).to(self.device).eval()

    @cached_property
    def tokenizer(self) -> MergeVQ:
        """The frozen tokenizer."""
        return self.spec.tokenizer.load(self.device)

    @torch.inference_mode()
    def codes(
        self,
        labels: Tensor,
        sample_ids: Tensor,
        *,
        generator: Generator | None = None,
        scale: float | None = None,
    ) -> Generated:
        """Codes of labels and sample numbers (B,) int64; at another guidance `scale`, by another `generator` if given."""
        guidance = parse(
            GuidanceConfig, self.spec.guidance if scale is None else self.spec.at_scale(scale).guidance
        )
        return sample(
            generator or self.generator,
            labels.to(self.device),
            keep=self.counts(labels, sample_ids),
            sample_ids=sample_ids,
            seed=self.spec.seed,
            sampling=self.sampling,
            guidance=guidance,
            steps=self.spec.steps,
        )

    def counts(self, labels: Tensor, sample_ids: Tensor) -> Tensor | int | None:
        """The kept counts (B,) int64 of samples, drawn from what the trained generator learnt (`draw_counts`), or one for all."""
        budget = self.spec.budget
        if budget is None:
            return self.spec.keep
        generator = self.generator
        assert is_ragged(generator.config)
        own = budget == mean_count(generator.count_histogram, generator.config.keeps)
        return draw_counts(
            generator.count_histogram,
            generator.config.keeps,
            labels,
            sample_ids=sample_ids,
            seed=self.spec.seed,
            budget=None if own else budget,
        )

    @torch.inference_mode()
    def decode(self, indices: Tensor) -> Tensor:
        """Codes -> images (B, 3, H, W) in [-1, 1]: all cells' codes (B, N), or (B, K) placed by Source Recovery, padded with -1."""
        indices = indices.to(self.device)
        if self.recipe.generator.model.kind == "random_order":
            return self.tokenizer.decode_indices(indices)
        return self.tokenizer.decode_indices(indices, every_cell(indices, self.tokenizer.config.grid))


def class_names(recipe: Recipe) -> tuple[str, ...]:
    """The names of a generator's classes; their numbers where neither code set nor images can be asked."""
    numbers = tuple(map(str, range(recipe.generator.model.classes)))
    codes = recipe.generator.codes
    if not is_at_hand(codes or recipe.data.path):  # names are not worth fetching images for
        return numbers
    try:
        names = (
            read_manifest(codes).classes
            if codes
            else open_dataset(recipe.data.path, recipe.data.train_split, recipe.data.reading).classes
        )
    except InputError:
        return numbers
    return names if len(names) == len(numbers) else numbers


def class_labels(wanted: Sequence[str] | None, names: Sequence[str]) -> tuple[int, ...]:
    """Class numbers of names or numbers; all for none. Raises `InputError` for one that is neither."""
    chosen = []
    for word in wanted or map(str, range(len(names))):
        if word in names:
            chosen.append(names.index(word))
        elif word.isdecimal() and int(word) < len(names):
            chosen.append(int(word))
        else:
            some = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            raise InputError(f"--classes {word}: this generator knows classes 0 to {len(names) - 1} ({some})")
    return tuple(chosen)
