"""Recipe keys that may change in the middle of a training, where it is forked; and why the others may not.

A fork goes on from the exact state of its trunk. What may change is what a step reads anew: the distribution of kept counts,
weights of losses, rates. What the state was made of, or is counted in, stays.
"""

from __future__ import annotations

from typing import Any

from mergevq.config import flattened, to_tree
from mergevq.errors import InputError
from mergevq_platform.recipe.schema import Recipe

_LOSSES = (
    *("reconstruction", "perceptual.weight", "commitment_weight", "entropy", "recovery", "label_smoothing"),
    *(f"adversarial.{name}" for name in ("weight", "adaptive", "start_step", "lecam_weight", "lecam_decay")),
    *(f"alignment.{name}" for name in ("weight", "loss", "temperature", "momentum", "centre_momentum")),
    *(f"alignment.{name}" for name in ("student_temperature", "teacher_temperature", "label_smoothing")),
)

# Keys, and all below them, that a fork may change.
CHANGEABLE = (
    *("task.keep", *(f"task.losses.{name}" for name in _LOSSES)),
    *("optimizer", "discriminator_optimizer", "ema_decay", "steps", "epochs", "on_nan"),
    # What a checkpoint is called, how it is measured, where it is computed.
    *("name", "description", "experiment", "fork", "task.preset", "task.loss_preset"),
    *("log_every", "checkpoint_every", "keep_checkpoints", "evaluation", "task.generation"),
    *("cluster", "micro_batch", "data.loader_workers", "data.bad_image_limit"),
)

# Keys, and all below them, with the reason why a fork may not change them; the last is that of all others.
REASONS = {
    "task.kind": "the trunk's state is of another task",
    "task.model": "the trunk's weights have the shapes of its model",
    "task.losses": "the trunk's state holds the modules of its losses",
    "seed": "the trunk's data order and draws come from its seed",
    "global_batch": "the trunk's place in the data is counted in its batches",
    "data": "the trunk's place in the data would mean other images",
    "": "the trunk was computed with it",
}

# Weights whose parameters are in no optimizer where they are 0.
_FROZEN_AT_ZERO = ("task.losses.recovery.weight",)

_SHOWN = 3


def require_forkable(trunk: Recipe, recipe: Recipe, name: str) -> None:
    """Raise `InputError` where `recipe` changes a key that a fork of `trunk` may not, with the reason; `name` is the trunk's."""
    before, after = flattened(to_tree(trunk)), flattened(to_tree(recipe))
    if trunk.task.kind != recipe.task.kind:
        raise InputError(
            f"fork: '{name}' trains a {trunk.task.kind}, and the recipe a {recipe.task.kind}: {REASONS['task.kind']}; "
            f"fork a run that trains a {recipe.task.kind}"
        )
    keys = sorted(before.keys() | after.keys())
    changed = [key for key in keys if before.get(key) != after.get(key)]
    refused = [_refusal(key, before, after) for key in changed if not _may_change(key, before, after)]
    if refused:
        more = f" ({len(refused)} in all)" if len(refused) > _SHOWN else ""
        raise InputError(
            f"a fork of '{name}' cannot change {'; '.join(refused[:_SHOWN])}{more}. Leave that as it was, or train from the first step"
        )


def _may_change(key: str, before: dict[str, Any], after: dict[str, Any]) -> bool:
    if key in _FROZEN_AT_ZERO and bool(before.get(key)) != bool(after.get(key)):
        return False
    return any(_within(key, known) for known in CHANGEABLE)


def _refusal(key: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    reason = (
        "at weight 0 its parameters are in no optimizer"
        if key in _FROZEN_AT_ZERO
        else next(text for prefix, text in REASONS.items() if not prefix or _within(key, prefix))
    )
    return f"'{key}' from {_shown(before, key)} to {_shown(after, key)}: {reason}"


def _within(key: str, known: str) -> bool:
    return key == known or key.startswith(f"{known}.")


def _shown(tree: dict[str, Any], key: str) -> str:
    return repr(tree[key]) if key in tree else "nothing"
