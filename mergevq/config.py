"""Typed, frozen configurations: declared with `@config`, entered only through `parse`.

A configuration is a frozen, keyword-only dataclass whose fields are checked by pydantic. Variants ("an LFQ or an
FSQ quantizer") are unions of such classes, told apart by a literal field `kind`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar, cast, dataclass_transform

import pydantic
from pydantic import ConfigDict, TypeAdapter

from mergevq.config_errors import explain
from mergevq.errors import InputError

T = TypeVar("T")
Tree = dict[str, Any]


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Make `cls` a configuration: frozen, keyword-only, every field checked, unknown fields refused."""
    made: Any = pydantic.dataclasses.dataclass(
        cls, frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)
    )
    return made


def parse(
    cls: type[T], data: Mapping[str, Any], *, where: str = "", options: Mapping[str, str] | None = None
) -> T:
    """Turn a plain tree (from YAML, overrides, a trial) into a checked `cls`.

    `where` prefixes the key paths of messages; a key of `options` is called by its value there, as someone typed it.
    Raises `InputError` naming every wrong key, its value and the fix.
    """
    try:
        return _adapter(cast(Hashable, cls)).validate_python(dict(data))
    except pydantic.ValidationError as error:
        lines = explain(cls, error.errors(include_url=False), where=where, options=options)
        raise InputError("; ".join(lines)) from None


def to_tree(value: Any) -> Tree:
    """The complete plain tree of a configuration: JSON and YAML types only, every default written out."""
    return _adapter(cast(Hashable, type(value))).dump_python(value, mode="json")


def merged(base: Mapping[str, Any], update: Mapping[str, Any]) -> Tree:
    """`base` with `update` laid over it, key by key.

    Where both hold a mapping they are merged, unless the update names another `kind`: then it replaces the whole
    variant, because the fields of one kind mean nothing to another.
    """
    result = dict(base)
    for key, value in update.items():
        old = result.get(key)
        if (
            isinstance(old, Mapping)
            and isinstance(value, Mapping)
            and value.get("kind", old.get("kind")) == old.get("kind")
        ):
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def with_overrides(tree: Mapping[str, Any], overrides: Iterable[str]) -> Tree:
    """`tree` with command-line overrides `a.b=value` applied in order; values are YAML (numbers, lists, true, null)."""
    import yaml  # only what people write is YAML: models, metrics and their files do without it

    result = dict(tree)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path.strip():
            raise InputError(f"override '{override}': write it as key.path=value")
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError:
            raise InputError(
                f"override '{override}': the value is not YAML (quote text that holds : or [)"
            ) from None
        for key in reversed(path.strip().split(".")):
            value = {key: value}
        result = merged(result, value)
    return result


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`; lists stay values."""
    flat: Tree = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flattened(value, f"{path}."))
        else:
            flat[path] = value
    return flat


@cache
def _adapter(cls: Hashable) -> TypeAdapter:
    return TypeAdapter(cast(Any, cls))
