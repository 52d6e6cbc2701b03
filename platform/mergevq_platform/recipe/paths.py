"""The files and folders that a recipe names: found by the type of the field that names them, wherever it stands."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

from mergevq.paths import PathKind

DataPath = Annotated[str, PathKind.DATA]
CodesPath = Annotated[str, PathKind.CODES]
RunPath = Annotated[str, PathKind.RUN]


class NamedPath(NamedTuple):
    """A path as a configuration gives it: `key` is dotted, `owner` the configuration that holds it."""

    key: str
    kind: PathKind
    path: str
    owner: Any


def named_paths(config: Any, prefix: str = "") -> Iterator[NamedPath]:
    """Every path that a configuration names, itself or in one of its parts."""
    kinds = path_fields(cast(Hashable, type(config)))
    for field in dataclasses.fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        if field.name in kinds and isinstance(value, str):
            yield NamedPath(key, kinds[field.name], value, config)
        elif dataclasses.is_dataclass(value):
            yield from named_paths(value, f"{key}.")


@cache
def path_fields(cls: Any) -> dict[str, PathKind]:
    """The fields of a configuration's class that name paths."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {field.name: _kind(hints[field.name]) for field in dataclasses.fields(cls)}
    return {name: kind for name, kind in found.items() if kind is not None}


@cache
def path_keys(cls: Any) -> dict[str, PathKind]:
    """Every dotted key by which a configuration of this class can name a path, whichever variants it is made of."""
    found = dict(path_fields(cls))
    for name, hint in typing.get_type_hints(cls).items():
        for part in _configurations(hint):
            found |= {f"{name}.{key}": kind for key, kind in path_keys(part).items()}
    return found


def _configurations(hint: Any) -> Iterator[Hashable]:
    if dataclasses.is_dataclass(hint):
        yield cast(Hashable, hint)
    for part in typing.get_args(hint):
        yield from _configurations(part)


def _kind(hint: Any) -> PathKind | None:
    for part in (*getattr(hint, "__metadata__", ()), *map(_kind, typing.get_args(hint))):
        if isinstance(part, PathKind):
            return part
    return None


def hash_field(named: NamedPath) -> str | None:
    """The dotted key of the hash that belongs to a file of weights, if the configuration has one."""
    outer, _, name = named.key.rpartition(".")
    fields = {field.name for field in dataclasses.fields(named.owner)}
    hashed = next((known for known in (f"{name}_sha256", "sha256") if known in fields), None)
    return f"{outer}.{hashed}" if hashed and outer else hashed


def data_places(config: Any) -> list[str]:
    """The image sets and code sets that a recipe names."""
    return [named.path for named in named_paths(config) if named.kind in (PathKind.DATA, PathKind.CODES)]


def weights_files(config: Any) -> dict[str, str]:
    """The files of weights that a recipe names, key → file (of an exported directory: its model.safetensors)."""
    files = {}
    for key, kind, path, _ in named_paths(config):
        if kind is PathKind.WEIGHTS:
            files[key] = path
        elif kind is PathKind.EXPORT:
            files[key] = str(Path(path) / "model.safetensors")
    return files
