"""Tokenizers on disk: a directory with config.json and model.safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq.tokenizer import MergeVQ, TokenizerConfig

CONFIG, WEIGHTS, FORMAT = "config.json", "model.safetensors", "mergevq tokenizer 1"


def save(tokenizer: MergeVQ, directory: str | Path) -> None:
    """Write a tokenizer; each file appears whole or not at all, config.json last."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tokenizer.state_dict().items()}
    description = {"format": FORMAT, "config": to_tree(tokenizer.config)}
    save_file(tensors, directory / f".{WEIGHTS}")
    os.replace(directory / f".{WEIGHTS}", directory / WEIGHTS)
    (directory / f".{CONFIG}").write_text(json.dumps(description, indent=1) + "\n")
    os.replace(directory / f".{CONFIG}", directory / CONFIG)


def load(directory: str | Path) -> MergeVQ:
    """Read a tokenizer on the CPU, in evaluation mode. Raises `InputError` if a file is missing, damaged or of another model."""
    directory = Path(directory)
    tokenizer = MergeVQ(read_config(directory))
    path = directory / WEIGHTS
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{directory} has no {WEIGHTS}: it is not a tokenizer's directory") from None
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}): copy it again") from None
    try:
        tokenizer.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise InputError(
            f"{path} does not belong to its {CONFIG}: {' '.join(str(error).split())[:300]}"
        ) from None
    return tokenizer.eval()


def read_config(directory: str | Path) -> TokenizerConfig:
    """The configuration of a saved tokenizer."""
    path = Path(directory) / CONFIG
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no tokenizer in {directory}: it has no {CONFIG}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}): copy it again") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        found = description.get("format") if isinstance(description, dict) else None
        raise InputError(f"{path} describes '{found}', not a '{FORMAT}'")
    return parse(TokenizerConfig, description["config"], where=f"{path}: ")
