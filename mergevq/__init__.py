"""MergeVQ: an image tokenizer that merges tokens and quantizes them, as a library.

    tokenizer = mergevq.create("gr_256_d64")  # untrained, by preset
    tokenizer = mergevq.load("checkpoint")  # trained: a directory with config.json and model.safetensors
    tokenizer = mergevq.load("hf://owner/name@v1")  # the same from the Hugging Face Hub
    encoded = tokenizer.encode(images, keep=144)  # images (B, 3, H, W) in [-1, 1]
    images = tokenizer.decode(encoded)  # with the true source
    images = tokenizer.decode_indices(encoded.indices)  # with the source that Source Recovery predicts

Generators are in `mergevq.generation`, allocators of kept tokens in `mergevq.allocation`, metrics in `mergevq.metrics`, trainings
in `mergevq.training`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mergevq.errors import InputError

if TYPE_CHECKING:
    from mergevq.allocation.files import load_allocator, save_allocator
    from mergevq.merging import Source
    from mergevq.presets import list_presets, preset
    from mergevq.serialization import load, load_generator, save, save_generator
    from mergevq.tokenizer import Encoded, MergeVQ, TokenizerConfig

__version__ = "0.1.0"

__all__ = [
    "Encoded",
    "InputError",
    "MergeVQ",
    "Source",
    "TokenizerConfig",
    "create",
    "list_presets",
    "load",
    "load_allocator",
    "load_generator",
    "preset",
    "save",
    "save_allocator",
    "save_generator",
]


# PyTorch takes more than a second to import: it comes with the first of these, not with every process that raises our errors.
_HOMES = {
    "Encoded": "tokenizer",
    "MergeVQ": "tokenizer",
    "Source": "merging",
    "TokenizerConfig": "tokenizer",
    "list_presets": "presets",
    "load": "serialization",
    "load_allocator": "allocation.files",
    "load_generator": "serialization",
    "preset": "presets",
    "save": "serialization",
    "save_allocator": "allocation.files",
    "save_generator": "serialization",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mergevq' has no attribute '{name}'")
    globals()[name] = getattr(importlib.import_module(f"mergevq.{_HOMES[name]}"), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def create(name: str, overrides: Mapping[str, Any] | None = None, /, **fields: Any) -> MergeVQ:
    """An untrained tokenizer by preset, with any field overridden.

    `create("gr_256_d64", {"encoder": {"depth": 4}})`, `create("gr_256_d64", keep=100)` and dotted keys
    (`**{"encoder.depth": 4}`) say the same. Raises `InputError` for an unknown preset or field.
    """
    from mergevq.config import merged, parse, to_tree
    from mergevq.presets import preset
    from mergevq.tokenizer import MergeVQ, TokenizerConfig

    tree = merged(to_tree(preset(name)), overrides or {})
    for key, value in fields.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merged(tree, value)
    return MergeVQ(parse(TokenizerConfig, tree))
