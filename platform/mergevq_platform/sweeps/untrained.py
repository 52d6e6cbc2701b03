"""The untrained tokenizer of a sweep, measured once: the reference point of its hypervolumes."""

from __future__ import annotations

from dataclasses import replace

from mergevq.errors import InputError
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.worker import Device
from mergevq_platform.recipe import resolve
from mergevq_platform.sweeps.definition import Sweep
from mergevq_platform.sweeps.objectives import UntrainedPoint
from mergevq_platform.tasks.task import task_of


def untrained_reference(sweep: Sweep, device: Device) -> UntrainedPoint:
    """The untrained tokenizer of the base recipe, every token kept, on the rung's images: a fixed point of the sweep.

    Raises `InputError` where the images have no labels.
    """
    recipe = resolve(sweep.base(), sweep.folder, pins=sweep.pins)
    settings = replace(
        recipe.evaluation,
        keeps=(recipe.tokenizer.model.grid_tokens,),
        images=sweep.rung.images,
        probe_images=sweep.rung.probe_images,
        untrained_baseline=False,
    )
    recipe = replace(recipe, evaluation=settings)
    curve: Curve = (
        task_of(recipe).evaluator(recipe, None, EvaluationOptions(step=0, device=device)).report("untrained")
    )
    row = curve.rows[0]
    if "probe_top1_cls" not in row:
        raise InputError(f"{recipe.data.path} has no labels: an objective of this sweep needs a probe")
    return UntrainedPoint(frechet=row[curve.frechet_key], probe=row["probe_top1_cls"])
