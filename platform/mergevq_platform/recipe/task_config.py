"""The section `task` of a recipe: the methods that a recipe calls, and the settings of the two stages."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
from pydantic import Field

from mergevq import keep as kept
from mergevq.allocation import require_within
from mergevq.config import Tree, config, merged, parse, to_tree
from mergevq.errors import InputError
from mergevq.generation import (
    GeneratorConfig,
    GeneratorTrainingConfig,
    GuidanceConfig,
    RasterConfig,
    SamplingConfig,
    generator_preset,
    is_ragged,
)
from mergevq.image_size import size_text
from mergevq.initialisation import select_weights
from mergevq.keep import KeepDistributionConfig
from mergevq.losses.config import TokenizerTrainingConfig, loss_preset
from mergevq.merge_schedule import merge_schedule
from mergevq.number_types import Count, NonNegative, Positive
from mergevq.paths import WeightsPath
from mergevq.presets import preset
from mergevq.tokenizer import MergeVQ, TokenizerConfig
from mergevq_platform.data import ViewsConfig
from mergevq_platform.recipe.paths import CodesPath, RunPath
from mergevq_platform.recipe.sections import EvaluationConfig


class TaskConfig:
    """The section `task` of a recipe, a class for each `kind`.

    Its class is one of `mergevq_platform.tasks`. Here is what a recipe asks of it; `tasks.task.Task` adds what a training does.
    """

    kind: str

    @classmethod
    def complete(cls, tree: Tree) -> Tree:
        """The section with its presets written out under what it says."""
        return tree

    @classmethod
    def section(cls, tree: Tree) -> type[TaskConfig]:
        """The class of this completed section: another where a part is yet to be read from a run, which `pin` does."""
        del tree
        return cls

    def complete_views(self, views: ViewsConfig) -> Tree:
        """The sizes of views that the model and the losses need and the recipe leaves open. Raises `InputError` for views that do
        not fit."""
        if not views.image_size:
            raise InputError("data.views.image_size is missing: give the side of the images in pixels")
        return {}

    def check(self, evaluation: EvaluationConfig) -> None:
        """Raise `ValueError` for kept counts and budgets that the model cannot reach."""
        if evaluation.budgets:
            raise ValueError(
                f"evaluation.budgets compares allocators of a tokenizer, and this recipe trains a {self.kind}: leave it out"
            )

    def pin(self) -> TaskConfig:
        """The section with location and hash of every upstream model. Raises `InputError` for one that is not there."""
        return self

    def keep_distribution(self) -> tuple[KeepDistributionConfig, int] | None:
        """The distribution of kept counts and its grid; None for tasks that keep every token."""
        return None

    def kept_counts(self) -> tuple[int, ...]:
        """The kept counts that training draws from, ascending; none for tasks that keep every token."""
        drawn = self.keep_distribution()
        return drawn[0].candidates(drawn[1]) if drawn else ()

    def draw_keep(self, seed: int, step: int) -> int | None:
        """The kept count of a step: a function of (seed, step), the same on all ranks; None for tasks that keep every token."""
        drawn = self.keep_distribution()
        return kept.draw(*drawn, seed=seed, step=step) if drawn else None

    @property
    def as_tokenizer(self) -> TokenizerTaskConfig | None:
        """The settings of the tokenizer that a checkpoint of this task holds, at the kept counts that it was trained at."""
        return None

    @property
    def as_generator(self) -> GeneratorTaskConfig | None:
        """The settings of the generator that a checkpoint of this task holds."""
        return None

    def tags(self) -> dict[str, str]:
        """MLflow tags of a run: variant, alignment, its upstream tokenizer."""
        return {}

    def parameters(self) -> dict[str, Any]:
        """MLflow parameters beside the recipe."""
        return {}


InitialPart = Literal["alignment", "discriminator", "head", "recovery"]


@config
class TokenizerTaskConfig(TaskConfig):
    """Train a MergeVQ tokenizer.

    With `initial_run` training starts from a trained one: its weights, their average, the discriminator and all moving averages
    where it has them, with a fresh optimizer. What the recipe then leaves out of `model`, `keep` and `losses` is that of the run.
    """

    kind: Literal["tokenizer"] = "tokenizer"
    preset: str | None = None  # the named preset that `model` starts from
    model: TokenizerConfig
    keep: KeepDistributionConfig  # how the kept-token count of each step is drawn
    loss_preset: Literal["release", "paper"] | None = None  # the named preset that `losses` starts from
    losses: TokenizerTrainingConfig
    initial_weights: WeightsPath | None = None  # DINOv2 weights file: weight selection (A.1); none: random
    initial_weights_sha256: str | None = None
    initial_run: RunPath | None = (
        None  # a run, a checkpoint, a URI of either, or a tokenizer alone; none: training starts untrained
    )
    initial_run_sha256: str | None = None
    initial_except: tuple[InitialPart, ...] = ()  # parts of `initial_run` that start anew

    def __post_init__(self) -> None:
        require_one_start(self.initial_run, self.initial_weights, self.initial_except)

    @classmethod
    def complete(cls, tree: Tree) -> Tree:
        """See `TaskConfig.complete`: presets of model and losses."""
        if leaves_to_initial_run(tree):
            return tree
        task = dict(tree)
        if task.get("preset"):
            task["model"] = merged(to_tree(preset(task["preset"])), task.get("model") or {})
        if task.get("loss_preset"):
            task["losses"] = merged(
                loss_preset(task["loss_preset"], _variant(task)), task.get("losses") or {}
            )
        return task

    def complete_views(self, views: ViewsConfig) -> Tree:
        """See `TaskConfig.complete_views`: the sizes that the alignment needs."""
        size = self.model.image_size
        if views.image_size not in (0, size):
            raise InputError(
                f"data.views.image_size is {size_text(views.image_size)} but the tokenizer works at {size_text(size)}: make them equal"
            )
        student, teacher = self.losses.views_needed(size)
        return {
            "image_size": size,
            "student_size": views.student_size or student,
            "teacher_size": views.teacher_size or teacher,
        }

    def check(self, evaluation: EvaluationConfig) -> None:
        """See `TaskConfig.check`."""
        grid, depth = self.model.grid_tokens, self.model.encoder.depth
        for key, keeps in (("task.keep", self.kept_counts()), ("evaluation.keeps", evaluation.keeps or ())):
            for keep in keeps:
                try:
                    merge_schedule(grid, keep, depth)
                except InputError as error:
                    raise ValueError(f"{key}: {error}") from None
        for budget in evaluation.budgets:
            try:
                require_within(budget, self.kept_counts())
            except InputError as error:
                raise ValueError(f"evaluation.budgets: {error}") from None

    def keep_distribution(self) -> tuple[KeepDistributionConfig, int]:
        """See `TaskConfig.keep_distribution`."""
        return self.keep, self.model.grid_tokens

    @property
    def as_tokenizer(self) -> TokenizerTaskConfig | None:
        """Itself."""
        return self

    def initial_model(self) -> MergeVQ:
        """The tokenizer before its first step, initialised by PyTorch's generator (and from given weights)."""
        tokenizer = MergeVQ(self.model)
        if self.initial_weights:
            select_weights(tokenizer, self.initial_weights, sha256=self.initial_weights_sha256)
        return tokenizer

    def tags(self) -> dict[str, str]:
        """Variant and alignment, and the tokenizer that training starts from."""
        found = {
            "mergevq.variant": self.preset or self.model.encoder.kind,
            "mergevq.alignment": self.losses.alignment.kind,
        }
        if self.initial_run:
            found["mergevq.initial_run"] = self.initial_run
        if self.initial_run_sha256:
            found["mergevq.initial_run_sha256"] = self.initial_run_sha256
        return found

    def parameters(self) -> dict[str, Any]:
        """The kept counts, and as merge ratios."""
        grid, counts = self.model.grid_tokens, self.kept_counts()
        return {
            "kept_tokens": list(counts),
            "merge_ratios": [round(1 - keep / grid, 4) for keep in counts],
        }


def leaves_to_initial_run(task: Tree) -> bool:
    """Whether a tokenizer's section names an initial run, and model, kept counts or losses without it would be incomplete."""
    model = task.get("model") or {}
    whole = task.get("preset") or {"keep", "encoder", "decoder", "quantizer"} <= model.keys()
    losses = task.get("loss_preset") or task.get("losses") is not None
    return bool(task.get("initial_run")) and not (whole and task.get("keep") and losses)


def require_one_start(
    initial_run: str | None, initial_weights: str | None, initial_except: tuple[InitialPart, ...]
) -> None:
    """Raise `ValueError` for two sets of weights to start from, and for parts of none."""
    if initial_run and initial_weights:
        raise ValueError(
            f"initial_run is '{initial_run}' and initial_weights '{initial_weights}': both give the weights that training starts "
            "from, leave one out"
        )
    if initial_except and not initial_run:
        raise ValueError(
            f"initial_except is {list(initial_except)}, parts of an initial run, but initial_run is not given: leave it out"
        )


@config
class GenerationConfig:
    """Sampling settings of a generator's evaluation; the settings of Table 3's rows."""

    keep: Count | None = None  # kept count; none: the most often trained, of ragged codes each image its own
    budget: Positive | None = (
        None  # of ragged codes: another mean of the kept counts; none: that of the codes
    )
    steps: Count | None = None  # random order: decoding steps; none: one for every token
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    guidance: GuidanceConfig = Field(default_factory=GuidanceConfig)  # its scale is one of `scales`, in turn
    scales: tuple[NonNegative, ...] = (
        1.0,
        1.5,
        2.0,
        3.0,
    )  # the curve; the point without guidance (1) is always in it
    images: Count = 1000  # images of each point, classes in turn
    batch: Count = 50  # images made together, whatever the number of workers
    baselines: bool = True  # also measure codes drawn by position, and the untrained generator

    def __post_init__(self) -> None:
        if self.keep is not None and self.budget is not None:
            raise ValueError(
                f"keep is {self.keep}, one count for all, and budget {self.budget:g}, a mean of many: leave one out"
            )

    @pydantic.model_serializer(mode="wrap")
    def _stored(self, tree_of: pydantic.SerializerFunctionWrapHandler) -> Tree:
        tree: Tree = tree_of(self)
        if self.budget is None:
            del tree["budget"]  # the tree of before there were ragged codes
        return tree


@config
class GeneratorTaskConfig(TaskConfig):
    """Train a generator on the codes of a frozen tokenizer (stage 2).

    `codes` is a code set (`mergevq tokenize`); without one, images of `data.path` are encoded inside each step. Of a set whose
    images keep different counts (`mergevq tokenize --budget`) the codes say the counts, and `keep` is none.
    """

    kind: Literal["generator"] = "generator"
    preset: str | None = None  # the named preset that `model` starts from
    model: GeneratorConfig
    losses: GeneratorTrainingConfig = Field(default_factory=GeneratorTrainingConfig)
    keep: KeepDistributionConfig | None = (
        None  # how the kept-token count of each step is drawn; left out: all that the model knows, in turn
    )
    budget: Positive | None = (
        None  # of ragged codes: the mean count that they were made for; none: read from the codes
    )
    allocator: str | None = None  # of ragged codes: what chose the counts; none: read from the codes
    codes: CodesPath | None = None  # a directory, a URI or hf://datasets/owner/name
    tokenizer: RunPath | None = (
        None  # a run directory, a checkpoint, a URI or hf://owner/name; none: the one that made the codes
    )
    tokenizer_sha256: str | None = None  # of its weights; none: recorded when the run begins
    tokenizer_codes_sha256: str | None = None  # the same without Source Recovery's, which may change
    generation: GenerationConfig = Field(default_factory=GenerationConfig)

    def __post_init__(self) -> None:
        if self.codes is None and self.tokenizer is None:
            raise ValueError(
                "give codes (a code set made by `mergevq tokenize`), or a tokenizer to encode images with"
            )
        if is_ragged(self.model) and (self.codes is None or self.keep is not None):
            raise ValueError(
                "model.ragged learns the count of each image from codes (`mergevq tokenize --budget`): give codes, and leave keep out"
            )
        known, candidates = trainable_keeps(self.model), self.kept_counts()
        for key, wanted in (("keep", candidates), ("generation.keep", (self.generation.keep,))):
            for count in wanted:
                if count is not None and count not in known:
                    raise ValueError(
                        f"{key}: {count} kept tokens are not among those that the model knows ({_listed(known)}): "
                        f"add {count} to model.keeps, or change {key}"
                    )
        # Where the count is not said, steps are at most its tokens.
        steps, tokens = self.generation.steps, self.generation.keep or max(candidates)
        if steps is not None and self.model.kind != "random_order":
            raise ValueError(
                f"generation.steps: a {self.model.kind} generator makes one token after the other: leave it out"
            )
        if steps is not None and steps > tokens:
            raise ValueError(f"generation.steps is {steps}, more than the {tokens} tokens to make: lower it")

    @classmethod
    def complete(cls, tree: Tree) -> Tree:
        """See `TaskConfig.complete`: the preset of the model, and all kept counts that it knows."""
        task = dict(tree)
        if task.get("preset"):
            task["model"] = merged(to_tree(generator_preset(task["preset"])), task.get("model") or {})
        model: Any = task.get("model") or {}
        if not task.get("keep") and not model.get("ragged"):
            counts = list(model.get("keeps") or [model.get("grid_tokens", 1)])
            task["keep"] = {"kind": "list", "counts": counts}
        return task

    @pydantic.model_serializer(mode="wrap")
    def _stored(self, tree_of: pydantic.SerializerFunctionWrapHandler) -> Tree:
        tree: Tree = tree_of(self)
        for key in ("budget", "allocator"):
            if getattr(self, key) is None:
                del tree[key]  # the tree of before there were ragged codes
        return tree

    def keep_distribution(self) -> tuple[KeepDistributionConfig, int] | None:
        """See `TaskConfig.keep_distribution`; None where every image has its own count."""
        return None if self.keep is None else (self.keep, self.model.grid_tokens)

    def kept_counts(self) -> tuple[int, ...]:
        """See `TaskConfig.kept_counts`."""
        return tuple(sorted(self.model.keeps)) if is_ragged(self.model) else super().kept_counts()

    @property
    def as_generator(self) -> GeneratorTaskConfig | None:
        """Itself."""
        return self

    def tags(self) -> dict[str, str]:
        """Variant, and the hash of the tokenizer of its codes."""
        found = {"mergevq.variant": self.preset or self.model.kind}
        if self.tokenizer_sha256:
            found["mergevq.tokenizer"] = self.tokenizer_sha256
        if self.budget is not None:
            found |= {"mergevq.budget": f"{self.budget:g}", "mergevq.allocator": str(self.allocator)}
        return found


def trainable_keeps(model: GeneratorConfig) -> tuple[int, ...] | range:
    """The kept counts that a generator can be trained at; any for a raster generator, which is not conditioned on them."""
    return range(1, model.grid_tokens + 1) if isinstance(model, RasterConfig) else model.keeps


def _listed(counts: tuple[int, ...] | range) -> str:
    return f"1 to {counts[-1]}" if isinstance(counts, range) else ", ".join(map(str, counts))


def _variant(task: Tree) -> Literal["g", "gr", "r"]:
    # Table A1 weighs recovery and alignment by variant: R is the pure ViT, G the hybrid that reduces by 8, G+R by 16.
    model = parse(TokenizerConfig, task.get("model") or {}, where="task.model.")
    if model.encoder.kind == "vit":
        return "r"
    return "g" if model.encoder.reduction == 8 else "gr"
