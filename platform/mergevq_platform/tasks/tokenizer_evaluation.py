"""The evaluator of checkpoints that hold a tokenizer: of stage 1, and of a tuned Source Recovery."""

from __future__ import annotations

from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.spec import EvaluationSpec, keeps_to_measure
from mergevq_platform.evaluation.tokenizer import TokenizerEvaluator
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.evaluation.worker import answers
from mergevq_platform.recipe import ResolvedRecipe


def tokenizer_evaluator(
    recipe: ResolvedRecipe, checkpoint: str | None, options: EvaluationOptions
) -> TokenizerEvaluator:
    """Raises `InputError` for kept counts that cannot be reached."""
    spec = EvaluationSpec(checkpoint, recipe, options.data or recipe.data.path, options.device)
    passes = Passes(answers(TokenizerWorker, spec, options.workers), options.cache)
    keeps = keeps_to_measure(recipe, options.keeps)
    return TokenizerEvaluator(spec, passes, keeps, options.suites, options.seeds, options.step, options.say)
