"""Tokenizers on disk: a directory with config.json and model.safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq.file_kinds import check_kind
from mergevq.tokenizer import MergeVQ, TokenizerConfig
from mergevq.weights_file import misfit, unusable

CONFIG, WEIGHTS, FORMAT = "config.json", "model.safetensors", "mergevq tokenizer 1"


def save(tokenizer: MergeVQ, directory: str | Path) -> None:
    """Write a tokenizer; each file appears whole or not at all, config.json last."""
    write(tokenizer, {"format": FORMAT, "config": to_tree(tokenizer.config)}, directory)


def load(directory: str | Path) -> MergeVQ:
    """Read a tokenizer on the CPU, in evaluation mode. Raises `InputError` if a file is missing, damaged or of another model."""
    tokenizer = MergeVQ(read_config(directory))
    read_state(tokenizer, directory, what="tokenizer")
    return tokenizer.eval()


def read_config(directory: str | Path) -> TokenizerConfig:
    """The configuration of a saved tokenizer."""
    path, description = read_description(directory, FORMAT, what="tokenizer")
    return parse(TokenizerConfig, description["config"], where=f"{path}: ")


def write(model: nn.Module, description: dict[str, Any], directory: str | Path) -> None:
    """Write a model's tensors and its description; each file appears whole or not at all, the description last."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, directory / f".{WEIGHTS}")
    os.replace(directory / f".{WEIGHTS}", directory / WEIGHTS)
    (directory / f".{CONFIG}").write_text(json.dumps(description, indent=1) + "\n")
    os.replace(directory / f".{CONFIG}", directory / CONFIG)


def read_description(directory: str | Path, expected: str, *, what: str) -> tuple[Path, dict[str, Any]]:
    """The path and content of the config.json of a saved `what`. Raises `InputError` unless its format is `expected`."""
    path = Path(directory) / CONFIG
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no {what} in {directory}: it has no {CONFIG}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}): copy it again") from None
    if not isinstance(description, dict) or description.get("format") != expected:
        found = description.get("format") if isinstance(description, dict) else None
        raise InputError(f"{path} describes '{found}', not a '{expected}'")
    return path, description


def read_state(model: nn.Module, directory: str | Path, *, what: str) -> None:
    """Load the tensors of a saved `what`. Raises `InputError` if they are missing, damaged or do not fit."""
    path = Path(directory) / WEIGHTS
    if not path.exists():
        raise InputError(f"{directory} has no {WEIGHTS}: it is not a {what}'s directory")
    check_kind(path, named=str(path))
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}): copy it again") from None
    expected = model.state_dict()
    if problem := misfit(expected, tensors):
        raise InputError(f"{path} does not belong to its {CONFIG}: it {problem}: copy both again")
    if problem := unusable(expected, tensors):
        raise InputError(
            f"{path} {problem}: its training diverged, or it was changed: take another checkpoint"
        )
    model.load_state_dict(tensors)
