"""Classifiers on disk: a directory with config.json, which says of what format it is, and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from torch import nn

from mergevq.errors import InputError
from mergevq.weights_file import load_strictly, read_weights

CONFIG, WEIGHTS = "config.json", "model.safetensors"

M = TypeVar("M", bound=nn.Module)


def write_export(directory: str | Path, model: nn.Module, format: str, facts: Mapping[str, Any]) -> None:
    """Write the model's weights, and its format and `facts`, into `directory`, which is made where it is missing."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
        directory / WEIGHTS,
    )
    (directory / CONFIG).write_text(json.dumps({"format": format, **facts}, indent=2) + "\n")


def read_description(
    directory: str | Path, format: str, *, what: str, key: str
) -> tuple[dict[str, Any], str]:
    """What `write_export` wrote beside the weights, and how messages about it begin.

    `key` is the configuration key that named the directory, `what` the thing that it must hold, in words. Raises
    `InputError` where it holds none, or something else.
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise InputError(
            f"{key}: '{directory}' holds no {what.removeprefix('a ')}: train one, then name its export"
        )
    try:
        description = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{key}: '{path}' is not JSON ({error})") from None
    if not isinstance(description, dict) or description.get("format") != format:
        raise InputError(f"{key}: '{directory}' holds something other than {what}")
    return description, f"{path}: "


def load_export(directory: str | Path, model: M, *, key: str) -> M:
    """`model` with the weights that were written, in eval mode on the CPU. Raises `InputError` where they do not fit."""
    path = str(Path(directory) / WEIGHTS)
    load_strictly(model, read_weights(path, key=key), key=key, source=path)
    return model.eval()
