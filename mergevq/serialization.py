"""Model directories: config.json, which names its format, and model.safetensors.

Tokenizers and generators are saved and loaded here. Classifiers (stand-in teacher, probe, fine-tuned encoder) write
and read their own descriptions by `write_model`, `read_export` and `load_export`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq.file_kinds import check_kind
from mergevq.files import whole_file, write_whole
from mergevq.generation.config import parse_generator
from mergevq.generation.model import Generator
from mergevq.tokenizer import MergeVQ, TokenizerConfig
from mergevq.weights_file import load_strictly, misfit, read_weights, unusable

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, GENERATOR = "mergevq tokenizer 1", "mergevq generator 1"

M = TypeVar("M", bound=nn.Module)


def save(tokenizer: MergeVQ, directory: str | Path) -> None:
    """Write a tokenizer; each file appears whole or not at all, config.json last."""
    write_model(tokenizer, TOKENIZER, {"config": to_tree(tokenizer.config)}, directory)


def load(directory: str | Path) -> MergeVQ:
    """Read a tokenizer on the CPU, in evaluation mode. Raises `InputError` if a file is missing, damaged or of another model."""
    tokenizer = MergeVQ(read_config(directory))
    _load_weights(tokenizer, directory, what="tokenizer")
    return tokenizer.eval()


def read_config(directory: str | Path) -> TokenizerConfig:
    """The configuration of a saved tokenizer. Raises `InputError` if the directory holds none."""
    path, description = _read_description(directory, TOKENIZER, what="tokenizer")
    return parse(TokenizerConfig, description["config"], where=f"{path}: ")


def save_generator(generator: Generator, directory: str | Path) -> None:
    """Write a generator; each file appears whole or not at all, config.json last."""
    write_model(generator, GENERATOR, {"config": to_tree(generator.config)}, directory)


def load_generator(directory: str | Path) -> Generator:
    """Read a generator on the CPU, in evaluation mode. Raises `InputError` if a file is missing, damaged or of another model."""
    path, description = _read_description(directory, GENERATOR, what="generator")
    generator = Generator(parse_generator(description["config"], where=f"{path}: "))
    _load_weights(generator, directory, what="generator")
    return generator.eval()


def write_model(model: nn.Module, format: str, description: Mapping[str, Any], directory: str | Path) -> None:
    """Write a model's tensors, its format and its description; each file appears whole or not at all, config.json last."""
    directory = Path(directory)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_whole(directory / CONFIG, json.dumps({"format": format, **description}, indent=1) + "\n")


def read_export(directory: str | Path, format: str, *, what: str, key: str) -> tuple[dict[str, Any], str]:
    """The description of a classifier's directory, and the beginning of messages about it.

    `key`: the configuration key that named the directory; `what`: the model that it must hold, in words. Raises
    `InputError` where it holds none, or another.
    """
    path = Path(directory) / CONFIG
    if not path.is_file():
        raise InputError(
            f"{key}: '{directory}' holds no {what.removeprefix('a ')}: train one, then name its checkpoint"
        )
    try:
        description = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{key}: '{path}' is not JSON ({error})") from None
    if _format(description) != format:
        raise InputError(f"{key}: '{directory}' holds something other than {what}")
    return description, f"{path}: "


def load_export(directory: str | Path, model: M, *, key: str) -> M:
    """`model` with the weights of a classifier's directory, in evaluation mode on the CPU. Raises `InputError` where they do not fit."""
    path = str(Path(directory) / WEIGHTS)
    load_strictly(model, read_weights(path, key=key), key=key, source=path)
    return model.eval()


def _read_description(directory: str | Path, format: str, *, what: str) -> tuple[Path, dict[str, Any]]:
    path = Path(directory) / CONFIG
    try:
        description = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"no {what} in {directory}: it has no {CONFIG}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}): copy it again") from None
    if (found := _format(description)) != format:
        raise InputError(f"{path} describes '{found}', not a '{format}'")
    return path, description


def _format(description: Any) -> Any:
    return description.get("format") if isinstance(description, dict) else None


def _load_weights(model: nn.Module, directory: str | Path, *, what: str) -> None:
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
