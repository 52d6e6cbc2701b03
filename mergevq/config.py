"""Typed, frozen configurations: declared with `@config`, entered only through `parse`.

A configuration is a frozen, keyword-only dataclass whose fields are checked by pydantic. Variants ("an LFQ or an
FSQ quantizer") are unions of such classes, told apart by a literal field `kind`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Hashable, Iterable, Mapping
from functools import cache
from typing import Any, TypeVar, cast, dataclass_transform

import pydantic
import yaml
from pydantic import ConfigDict, TypeAdapter

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


def parse(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Turn a plain tree (from YAML, overrides, a trial) into a checked `cls`.

    `where` prefixes the key paths of messages. Raises `InputError` naming every wrong key, its value and the fix.
    """
    try:
        return _adapter(cast(Hashable, cls)).validate_python(dict(data))
    except pydantic.ValidationError as error:
        lines = [_explain(cls, item, where) for item in error.errors(include_url=False)]
        raise InputError("; ".join(dict.fromkeys(lines))) from None


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


def _explain(cls: type, error: Any, where: str) -> str:
    # Tagged unions put the tag into the location; a tag is a value of the field `kind`, not a key of the tree.
    location = [str(part) for part in error["loc"]]
    owner, keys = cls, []
    for part in location:
        fields = _fields(owner)
        if part in fields:
            keys.append(part)
            owner = fields[part]
        elif not keys or not _is_tag(owner, part):
            keys.append(part)
        else:
            owner = _tagged(owner, part)
    path = where + ".".join(keys)
    match error["type"]:
        case "unexpected_keyword_argument":
            close = difflib.get_close_matches(keys[-1], _fields(owner), n=1, cutoff=0.5)
            known = (
                f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(sorted(_fields(owner)))}"
            )
            return f"unknown key '{path}': {known}"
        case "missing" | "missing_keyword_only_argument":
            return f"missing key '{path}'"
        case "union_tag_not_found":
            return f"missing key '{path}.kind': one of {error['ctx'].get('expected_tags', _tags(owner))}"
        case "union_tag_invalid":
            return (
                f"'{path}.kind' is {error['ctx']['tag']!r}: it must be one of {error['ctx']['expected_tags']}"
            )
        case "value_error":
            return f"{path + ': ' if path else ''}{error['ctx']['error']}"
        case _:
            message = error["msg"][0].lower() + error["msg"][1:]
            return f"'{path}' is {error['input']!r}: {message}"


def _fields(owner: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(owner):
        return _hints(cast(Hashable, owner))
    members = _members(owner)
    return _fields(members[0]) if len(members) == 1 else {}  # a dataclass or none


@cache
def _hints(owner: Any) -> dict[str, Any]:
    import typing

    return {
        name: hint
        for name, hint in typing.get_type_hints(owner).items()
        if name in {f.name for f in dataclasses.fields(owner)}
    }


def _members(owner: Any) -> list[Any]:
    import typing

    args = typing.get_args(owner)
    return [leaf for arg in args for leaf in ([arg] if dataclasses.is_dataclass(arg) else _members(arg))]


def _tags(owner: Any) -> list[str]:
    return [
        member.__dataclass_fields__["kind"].default for member in _members(owner) if "kind" in _fields(member)
    ]


def _is_tag(owner: Any, part: str) -> bool:
    return any(part in (member.__name__, _kind(member)) for member in _members(owner))


def _tagged(owner: Any, part: str) -> Any:
    return next(member for member in _members(owner) if part in (member.__name__, _kind(member)))


def _kind(member: Any) -> Any:
    field = getattr(member, "__dataclass_fields__", {}).get("kind")
    return getattr(field.default, "default", field.default) if field else None
