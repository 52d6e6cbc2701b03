"""Arrays and states as the small plain values that golden files hold.

A string is compared exactly on every machine. A mapping with the key `here` holds a hash that is compared on the machine of the
recording alone, beside numbers that are compared everywhere: the shape exactly, `mean` and `deviation` with the tolerance of floats,
and `mostly`, integers that depend on rounding, of which most must agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

DIGITS = 16  # of a hash: 64 bits


def _bytes(value: Any) -> bytes:
    tensor = torch.as_tensor(value).detach().cpu().contiguous()
    return (
        f"{tensor.dtype} {list(tensor.shape)} ".encode()
        + tensor.flatten().view(torch.uint8).numpy().tobytes()
    )


def digest(*values: Any) -> str:
    """A hash of types, shapes and values."""
    found = hashlib.sha256()
    for value in values:
        found.update(_bytes(value))
    return found.hexdigest()[:DIGITS]


def text_digest(text: str) -> str:
    """A hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def exact(value: Any) -> str:
    """An array of integers, the same on every machine."""
    tensor = torch.as_tensor(value)
    assert not tensor.is_floating_point()
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} {digest(tensor)}"


def floats(value: Any) -> dict[str, Any]:
    """An array of numbers that depend on rounding."""
    tensor = torch.as_tensor(value).detach().double()
    return {
        "here": digest(value),
        "shape": list(tensor.shape),
        "mean": float(tensor.mean()),
        "deviation": float((tensor - tensor.mean()).square().mean().sqrt()),
    }


def images(value: Any) -> dict[str, Any]:
    """A batch of uint8 images that depend on rounding: beside the hash, the mean of each."""
    tensor = torch.as_tensor(value)
    return {
        "here": digest(value),
        "shape": list(tensor.shape),
        "means": tensor.flatten(1).double().mean(1).tolist(),
    }


def codes(value: Any) -> dict[str, Any]:
    """An array of integers that were found by comparing numbers that depend on rounding."""
    tensor = torch.as_tensor(value)
    return {"here": digest(value), "shape": list(tensor.shape), "mostly": tensor.flatten().tolist()}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested mappings and lists as dotted path -> leaf."""
    if isinstance(value, Mapping):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {path: value}
    if not items:
        return {path: type(value).__name__}
    return {
        name: leaf
        for key, inner in items
        for name, leaf in flat(inner, f"{path}.{key}" if path else key).items()
    }


def keys(value: Any) -> list[str]:
    """The dotted keys of a tree, in their order; lists count as leaves."""
    if isinstance(value, Mapping):
        found: list[str] = []
        for key, inner in value.items():
            found += (
                [f"{key}.{below}" for below in keys(inner)]
                if isinstance(inner, Mapping) and inner
                else [str(key)]
            )
        return found
    return []


def state(value: Mapping[str, Any]) -> dict[str, Any]:
    """A state of tensors and plain values: names and shapes exactly, the values as one hash and one norm."""
    leaves = flat(value)
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}
    plain = {name: leaf for name, leaf in leaves.items() if not isinstance(leaf, torch.Tensor)}
    total = sum(float(leaf.double().square().sum()) for leaf in tensors.values())
    shapes = "\n".join(f"{name} {leaf.dtype} {list(leaf.shape)}" for name, leaf in tensors.items())
    return {
        "tensors": len(tensors),
        "names": text_digest(shapes),
        "plain": {"here": text_digest(repr(sorted(plain.items())))},
        "norm": total**0.5,
        "here": digest(*tensors.values()) if tensors else "",
    }


def checkpoint(directory: str | Path) -> dict[str, Any]:
    """Every part of a checkpoint's resume.pt, and its exported weights."""
    saved = torch.load(Path(directory, "resume.pt"), weights_only=True)
    found = {
        name: state(part) if isinstance(part, Mapping) and part else part if part is None else repr(part)
        for name, part in saved.items()
    }
    return found | {"exported": state(load_file(Path(directory, "model.safetensors")))}
