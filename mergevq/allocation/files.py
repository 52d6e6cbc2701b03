"""Directories of learned allocators: config.json with the hash of their tokenizer, and model.safetensors."""

from __future__ import annotations

from pathlib import Path

from mergevq.allocation.config import LearnedAllocatorConfig
from mergevq.allocation.learned import LearnedAllocator
from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq.serialization import CONFIG, WEIGHTS, load_export, open_model, read_export, write_model

FORMAT = "mergevq allocator 1"


def save_allocator(allocator: LearnedAllocator, directory: str | Path) -> None:
    """Write a learned allocator; each file appears whole or not at all, config.json last."""
    description = {
        "config": to_tree(allocator.config),
        "menu": list(allocator.menu),
        "width": allocator.width,
        "tokenizer_sha256": allocator.tokenizer_sha256,
    }
    write_model(allocator, FORMAT, description, directory)


def load_allocator(
    directory: str | Path, *, tokenizer_sha256: str | None = None, key: str = "allocator"
) -> LearnedAllocator:
    """Read a learned allocator on the CPU, in evaluation mode, from where `mergevq.load` reads: a directory, or `hf://owner/name`.

    `tokenizer_sha256`: the hash of the weights file of the tokenizer that it is to be used with; `key` begins messages. Raises
    `InputError` where the directory holds none, where the Hub does not give it, and where it belongs to another tokenizer.
    """
    opened = open_model(directory, CONFIG, WEIGHTS)
    description, where = read_export(
        opened.directory, FORMAT, what="a learned allocator", key=key, name=opened.name
    )
    config = parse(LearnedAllocatorConfig, description["config"], where=where)
    own = description["tokenizer_sha256"]
    if tokenizer_sha256 is not None and own is not None and own != tokenizer_sha256:
        raise InputError(
            f"{key}: {opened.name} was trained for a tokenizer of weights {own[:12]}…, this one has {tokenizer_sha256[:12]}…: give "
            "that tokenizer, or train an allocator for this one"
        )
    allocator = LearnedAllocator(config, tuple(description["menu"]), description["width"], own)
    return load_export(opened.directory, allocator, key=key)
