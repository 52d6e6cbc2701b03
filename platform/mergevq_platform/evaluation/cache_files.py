"""Results as safetensors files: arrays and sums by name, and no pickled code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mergevq.files import whole_file
from mergevq.metrics.accumulate import Accumulator
from mergevq_platform.evaluation.results import Mergeable

AnyKind = TypeVar("AnyKind", Accumulator, Mergeable)


def save(path: Path, result: object) -> None:
    """Write a result; the file appears whole or not at all."""
    tensors: dict[str, Tensor] = {}
    description = json.dumps(_described(result, tensors))
    with whole_file(path) as temporary:
        save_file(tensors or {"none": torch.zeros(0)}, temporary, metadata={"result": description})


def load(path: Path) -> object:
    """The result in a file; None where there is none, or a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            return _restored(json.loads(file.metadata()["result"]), file)
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _described(value: object, tensors: dict[str, Tensor]) -> object:
    match value:
        case Tensor() | np.ndarray():
            name = str(len(tensors))
            # Arrays that come from Ray are read-only, which PyTorch does not know.
            tensor = (
                value if isinstance(value, Tensor) else torch.from_numpy(np.require(value, requirements="W"))
            )
            tensors[name] = tensor.detach().cpu().contiguous()
            return {"tensor" if isinstance(value, Tensor) else "array": name}
        case Accumulator():
            state = {key: _described(part, tensors) for key, part in value.__getstate__().items()}
            return {"accumulator": type(value).__name__, "state": state}
        case Mergeable():
            parts = {key: _described(part, tensors) for key, part in vars(value).items()}
            return {"of": type(value).__name__, "parts": parts}
        case dict():
            return {"named": {key: _described(part, tensors) for key, part in value.items()}}
        case list() | tuple():
            return [_described(part, tensors) for part in value]
        case _:
            return value


def _restored(value: object, file: safe_open) -> object:
    match value:
        case {"tensor": str(name)}:
            return file.get_tensor(name)
        case {"array": str(name)}:
            return file.get_tensor(name).numpy()
        case {"accumulator": str(name), "state": dict(state)}:
            kind = _kinds(Accumulator)[name]
            accumulator = kind.__new__(kind)
            accumulator.__setstate__({key: _restored(part, file) for key, part in state.items()})
            return accumulator
        case {"of": str(name), "parts": dict(parts)}:
            made: Callable[..., Mergeable] = _kinds(Mergeable)[name]
            return made(**{key: _restored(part, file) for key, part in parts.items()})
        case {"named": dict(parts)}:
            return {key: _restored(part, file) for key, part in parts.items()}
        case list():
            return [_restored(part, file) for part in value]
        case _:
            return value


def _kinds(base: type[AnyKind]) -> dict[str, type[AnyKind]]:
    """The classes below `base` by name."""
    found: dict[str, type[AnyKind]] = {}
    for kind in base.__subclasses__():
        found |= {kind.__name__: kind, **_kinds(kind)}
    return found
