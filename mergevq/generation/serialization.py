"""Generators on disk: a directory with config.json and model.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mergevq.config import config, parse, to_tree
from mergevq.generation.config import GeneratorConfig
from mergevq.generation.model import Generator
from mergevq.serialization import read_description, read_state, write

FORMAT = "mergevq generator 1"


@config
class _Stored:
    generator: GeneratorConfig


def save_generator(generator: Generator, directory: str | Path) -> None:
    """Write a generator; each file appears whole or not at all, config.json last."""
    description = {"format": FORMAT, "config": to_tree(generator.config)}
    write(generator, description, directory)


def load_generator(directory: str | Path) -> Generator:
    """Read a generator on the CPU, in evaluation mode.

    Raises `InputError` if a file is missing, damaged or of another model.
    """
    generator = Generator(read_generator_config(directory))
    read_state(generator, directory, what="generator")
    return generator.eval()


def read_generator_config(directory: str | Path) -> GeneratorConfig:
    """The configuration of a saved generator."""
    path, description = read_description(directory, FORMAT, what="generator")
    return parse_generator(description["config"], where=f"{path}: ")


def parse_generator(tree: Any, *, where: str = "") -> GeneratorConfig:
    """A generator's configuration from its plain tree. Raises `InputError` naming every wrong key."""
    return parse(_Stored, {"generator": tree}, where=where).generator
