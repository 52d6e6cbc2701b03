"""MergeVQ: an image tokenizer that merges tokens and quantizes them, as a library.

    tokenizer = mergevq.create("gr_256_d64")  # untrained, by preset
    tokenizer = mergevq.load("checkpoint")  # trained: a directory with config.json and model.safetensors
    encoded = tokenizer.encode(images, keep=144)  # images (B, 3, H, W) in [-1, 1]
    images = tokenizer.decode(encoded)  # with the true source
    images = tokenizer.decode_indices(encoded.indices)  # with the source that Source Recovery predicts

Generators are in `mergevq.generation`, metrics in `mergevq.metrics`, trainings in `mergevq.training`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergevq.config import merged, parse, to_tree
from mergevq.errors import InputError
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
    "load_generator",
    "preset",
    "save",
    "save_generator",
]


def create(name: str, overrides: Mapping[str, Any] | None = None, /, **fields: Any) -> MergeVQ:
    """An untrained tokenizer by preset, with any field overridden.

    `create("gr_256_d64", {"encoder": {"depth": 4}})`, `create("gr_256_d64", keep=100)` and dotted keys
    (`**{"encoder.depth": 4}`) say the same. Raises `InputError` for an unknown preset or field.
    """
    tree = merged(to_tree(preset(name)), overrides or {})
    for key, value in fields.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = merged(tree, value)
    return MergeVQ(parse(TokenizerConfig, tree))
