"""Checkpoints: one directory that is both the exported model and everything needed to go on.

    config.json, model.safetensors   the model with its averaged (EMA) weights: `mergevq.load(directory)`
    recipe.yaml                      the resolved recipe
    resume.pt                        parameters, EMA, optimizers, averages, loss scale (read with weights_only)
    checkpoint.json                  step, what was trained, the data's fingerprint, sha256 of every file above

`checkpoint.json` is written last: a directory without it is not a checkpoint.

state.py     what resume.pt holds
writing.py   a checkpoint of a training, and the newest of a run in its storage
listing.py   names by step, newest first
reading.py   of its files those that are wanted, checked
"""

from mergevq_platform.storage.checkpoints.listing import (
    ABOUT,
    PREFIX,
    at_step,
    directory_name,
    listed,
    step_of,
)
from mergevq_platform.storage.checkpoints.reading import (
    CONFIG,
    MODEL,
    RECIPE,
    RESUME,
    about,
    is_bare,
    newest,
    recipe_of,
    restore,
    sha256,
    verify,
    weights,
    weights_sha256,
)
from mergevq_platform.storage.checkpoints.state import TrainingState
from mergevq_platform.storage.checkpoints.writing import bring, keep, recipe_yaml, write
from mergevq_platform.storage.locations import absolute, inside, open_storage

__all__ = [
    "ABOUT",
    "CONFIG",
    "MODEL",
    "PREFIX",
    "RECIPE",
    "RESUME",
    "TrainingState",
    "about",
    "absolute",
    "at_step",
    "bring",
    "directory_name",
    "inside",
    "is_bare",
    "keep",
    "listed",
    "newest",
    "open_storage",
    "recipe_of",
    "recipe_yaml",
    "restore",
    "sha256",
    "step_of",
    "verify",
    "weights",
    "weights_sha256",
    "write",
]
