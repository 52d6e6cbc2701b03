"""Answers as safetensors files: arrays and sums by name, and no pickled code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mergevq.metrics.accumulate import Accumulator
from mergevq_platform.evaluation.answers import Reconstruction
from mergevq_platform.seen import Parts, Seen
from mergevq_platform.storage.files import whole_file

PARTS: dict[str, type[Parts]] = {kind.__name__: kind for kind in (Reconstruction, Seen)}


def save(path: Path, answer: Any) -> None:
    """Write an answer; the file appears whole or not at all."""
    tensors: dict[str, Tensor] = {}
    description = json.dumps(_described(answer, tensors))
    with whole_file(path) as temporary:
        save_file(tensors or {"none": torch.zeros(0)}, temporary, metadata={"answer": description})


def load(path: Path) -> Any:
    """The answer in a file; None where there is none, or a damaged one."""
    try:
        with safe_open(path, framework="pt") as file:
            return _restored(json.loads(file.metadata()["answer"]), file)
    except (FileNotFoundError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _described(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case Tensor() | np.ndarray():
            name = str(len(tensors))
            # Arrays that come from Ray are read-only.
            tensor = value if isinstance(value, Tensor) else torch.tensor(value)
            tensors[name] = tensor.detach().cpu().contiguous()
            return {"tensor" if isinstance(value, Tensor) else "array": name}
        case Accumulator():
            state = {key: _described(part, tensors) for key, part in value.__getstate__().items()}
            return {"accumulator": type(value).__name__, "state": state}
        case Parts():
            parts = {key: _described(part, tensors) for key, part in vars(value).items()}
            return {"of": type(value).__name__, "parts": parts}
        case dict():
            return {"named": {key: _described(part, tensors) for key, part in value.items()}}
        case list() | tuple():
            return [_described(part, tensors) for part in value]
        case _:
            return value


def _restored(value: Any, file: Any) -> Any:
    match value:
        case {"tensor": name}:
            return file.get_tensor(name)
        case {"array": name}:
            return file.get_tensor(name).numpy()
        case {"accumulator": name, "state": state}:
            kind = _accumulators()[name]
            accumulator = kind.__new__(kind)
            accumulator.__setstate__({key: _restored(part, file) for key, part in state.items()})
            return accumulator
        case {"of": name, "parts": parts}:
            return PARTS[name](**{key: _restored(part, file) for key, part in parts.items()})
        case {"named": parts}:
            return {key: _restored(part, file) for key, part in parts.items()}
        case list():
            return [_restored(part, file) for part in value]
        case _:
            return value


def _accumulators(base: type[Accumulator] = Accumulator) -> dict[str, type[Accumulator]]:
    found: dict[str, type[Accumulator]] = {}
    for kind in base.__subclasses__():
        found |= {kind.__name__: kind, **_accumulators(kind)}
    return found
