"""The shared part of tasks whose checkpoints hold a tokenizer: stage 1, and a tuned Source Recovery."""

from __future__ import annotations

from mergevq.training.protocol import Training
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.rate_distortion import RateDistortionEvaluator, rate_distortion
from mergevq_platform.evaluation.spec import EvaluationSpec, keeps_to_measure
from mergevq_platform.evaluation.tokenizer import TokenizerEvaluator
from mergevq_platform.evaluation.tokenizer_passes import TokenizerPasses
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.evaluation.worker import answers
from mergevq_platform.recipe import EvaluationConfig, Recipe, ResolvedRecipe
from mergevq_platform.tasks.measures import require_extractor, require_lpips
from mergevq_platform.tasks.task import Task


class TokenizerCheckpointTask(Task):
    """A task whose checkpoints are complete tokenizers, trained at several kept counts."""

    def compile(self, training: Training) -> None:
        """Compile the blocks: one graph for every (layer, kept count)."""
        training.model().compile(kept_counts=len(self.kept_counts()))

    def require_measures(self, recipe: Recipe) -> None:
        """See `Task.require_measures`: extractor and LPIPS."""
        require_extractor(recipe)
        require_lpips(recipe)

    @property
    def evaluated(self) -> bool:
        """True."""
        return True

    def measures(self, settings: EvaluationConfig) -> EvaluationConfig:
        """See `Task.measures`: extractor and LPIPS."""
        return settings

    def evaluator(
        self, recipe: ResolvedRecipe, checkpoint: str | None, options: EvaluationOptions
    ) -> TokenizerEvaluator | RateDistortionEvaluator:
        """See `Task.evaluator`; with budgets, of allocators. Raises `InputError` for kept counts that cannot be reached."""
        if options.budgets is None:
            return self.curve_evaluator(recipe, checkpoint, options)
        spec, passes = _opened(recipe, checkpoint, options)
        return rate_distortion(TokenizerPasses(spec, passes, options.say), options)

    def curve_evaluator(
        self, recipe: ResolvedRecipe, checkpoint: str | None, options: EvaluationOptions
    ) -> TokenizerEvaluator:
        """The evaluator of the curve. Raises `InputError` for kept counts that cannot be reached."""
        spec, passes = _opened(recipe, checkpoint, options)
        keeps = keeps_to_measure(recipe, options.keeps)
        return TokenizerEvaluator(
            spec, passes, keeps, options.suites, options.seeds, options.step, options.say
        )


def _opened(
    recipe: ResolvedRecipe, checkpoint: str | None, options: EvaluationOptions
) -> tuple[EvaluationSpec, Passes]:
    spec = EvaluationSpec(checkpoint, recipe, options.data or recipe.data.path, options.device)
    return spec, Passes(answers(TokenizerWorker, spec, options.workers), options.cache)
