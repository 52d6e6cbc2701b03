"""Model directories: config.json, which names its format, and model.safetensors.

Models are read from a directory or from the Hub (`hf://owner/name`). Tokenizers and generators are saved and loaded here.
Others (stand-in teacher, probe, fine-tuned encoder, allocator) write and read their own descriptions by `write_model`, `read_export`
and `load_export`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq.file_kinds import check_kind
from mergevq.files import whole_file, write_whole
from mergevq.generation.config import GeneratorConfig, parse_generator
from mergevq.generation.model import Generator
from mergevq.hub import check_spelling, fetch, on_hub, parse_address
from mergevq.tokenizer import MergeVQ, TokenizerConfig
from mergevq.weights_file import load_strictly, misfit, read_weights, unusable

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER, GENERATOR = "mergevq tokenizer 1", "mergevq generator 1"

M = TypeVar("M", bound=nn.Module)


class ModelDirectory(NamedTuple):
    """A model directory on this disk, and what messages call it."""

    directory: Path
    name: str


def save(tokenizer: MergeVQ, directory: str | Path) -> None:
    """Write a tokenizer; each file appears whole or not at all, config.json last."""
    write_model(tokenizer, TOKENIZER, {"config": to_tree(tokenizer.config)}, directory)


def load(directory: str | Path) -> MergeVQ:
    """Read a tokenizer on the CPU, in evaluation mode: from a directory, or `hf://owner/name[@revision][/folder]`.

    Raises `InputError` if a file is missing, damaged or of another model, and where the Hub does not give it.
    """
    opened = open_model(directory, CONFIG, WEIGHTS)
    tokenizer = MergeVQ(_tokenizer_config(opened))
    _load_weights(tokenizer, opened, what="tokenizer")
    return tokenizer.eval()


def read_config(directory: str | Path) -> TokenizerConfig:
    """The configuration of a saved tokenizer. Raises `InputError` if the directory or the Hub's repository holds none."""
    return _tokenizer_config(open_model(directory, CONFIG))


def save_generator(generator: Generator, directory: str | Path) -> None:
    """Write a generator; each file appears whole or not at all, config.json last."""
    write_model(generator, GENERATOR, {"config": to_tree(generator.config)}, directory)


def load_generator(directory: str | Path) -> Generator:
    """Read a generator on the CPU, in evaluation mode, from where `load` reads. Raises `InputError` as `load` does."""
    opened = open_model(directory, CONFIG, WEIGHTS)
    generator = Generator(_generator_config(opened))
    _load_weights(generator, opened, what="generator")
    return generator.eval()


def read_generator_config(directory: str | Path) -> GeneratorConfig:
    """The configuration of a saved generator. Raises `InputError` if the directory or the Hub's repository holds none."""
    return _generator_config(open_model(directory, CONFIG))


def format_of(directory: str | Path) -> str:
    """The format that a model directory names, such as `TOKENIZER`. Raises `InputError` if it holds no model of ours."""
    path, found = _description(open_model(directory, CONFIG), what="model")
    if not isinstance(format := _format(found), str):
        raise InputError(f"{path} names no format: give a model that mergevq wrote")
    return format


def write_model(model: nn.Module, format: str, description: Mapping[str, Any], directory: str | Path) -> None:
    """Write a model's tensors, its format and its description; each file appears whole or not at all, config.json last."""
    directory = Path(directory)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with whole_file(directory / WEIGHTS) as temporary:
        save_file(tensors, temporary)
    write_whole(directory / CONFIG, json.dumps({"format": format, **description}, indent=1) + "\n")


def open_model(place: str | Path, *files: str) -> ModelDirectory:
    """The directory of a model; where `place` is on the Hub, that of `files` in this machine's cache.

    Raises `InputError` where the Hub does not give them.
    """
    check_spelling(place)
    if not on_hub(place):
        return ModelDirectory(Path(place), str(Path(place)))
    address = parse_address(str(place), kind="model")
    return ModelDirectory(fetch(address, files), str(address))


def read_export(
    directory: str | Path, format: str, *, what: str, key: str, name: str | None = None
) -> tuple[dict[str, Any], str]:
    """The description of such a model's directory, and the beginning of messages about it.

    `key`: the configuration key that named the directory; `what`: the model that it must hold, in words; `name`: what
    messages call the directory, if not by its path. Raises `InputError` where it holds none, or another.
    """
    name = name or str(directory)
    path, shown = Path(directory) / CONFIG, f"{name}/{CONFIG}"
    if not path.is_file():
        raise InputError(
            f"{key}: '{name}' holds no {what.removeprefix('a ')}: train one, then name its checkpoint"
        )
    try:
        description = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{key}: '{shown}' is not JSON ({error})") from None
    if _format(description) != format:
        raise InputError(f"{key}: '{name}' holds something other than {what}")
    return description, f"{shown}: "


def load_export(directory: str | Path, model: M, *, key: str) -> M:
    """`model` with the weights of such a model's directory, in evaluation mode on the CPU. Raises `InputError` where they do not fit."""
    path = str(Path(directory) / WEIGHTS)
    load_strictly(model, read_weights(path, key=key), key=key, source=path)
    return model.eval()


def _tokenizer_config(opened: ModelDirectory) -> TokenizerConfig:
    path, description = _read_description(opened, TOKENIZER, what="tokenizer")
    return parse(TokenizerConfig, description["config"], where=f"{path}: ")


def _generator_config(opened: ModelDirectory) -> GeneratorConfig:
    path, description = _read_description(opened, GENERATOR, what="generator")
    return parse_generator(description["config"], where=f"{path}: ")


def _read_description(opened: ModelDirectory, format: str, *, what: str) -> tuple[str, dict[str, Any]]:
    path, description = _description(opened, what=what)
    if (found := _format(description)) != format:
        raise InputError(f"{path} describes '{found}', not a '{format}'")
    return path, description


def _description(opened: ModelDirectory, *, what: str) -> tuple[str, dict[str, Any]]:
    path = f"{opened.name}/{CONFIG}"
    try:
        return path, json.loads((opened.directory / CONFIG).read_text())
    except FileNotFoundError:
        raise InputError(f"no {what} in {opened.name}: it has no {CONFIG}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}): copy it again") from None


def _format(description: Any) -> Any:
    return description.get("format") if isinstance(description, dict) else None


def _load_weights(model: nn.Module, opened: ModelDirectory, *, what: str) -> None:
    file, path = opened.directory / WEIGHTS, f"{opened.name}/{WEIGHTS}"
    if not file.exists():
        raise InputError(f"{opened.name} has no {WEIGHTS}: it is not a {what}'s directory")
    check_kind(file, named=path)
    try:
        tensors = load_file(file)
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
