"""Messages on wrong configurations: one line for every wrong value, with its key or option as typed and the fix.

Pydantic reports every alternative of a union, with its label in the location; here they become one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

REQUIREMENTS = {  # pydantic's name of an error -> what is required
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "finite_number": "a finite number",
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_too_short": "text of at least {min_length} letters",
    "string_too_long": "text of at most {max_length} letters",
    "string_pattern_mismatch": "text of the form {pattern}",
    "literal_error": "{expected}",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_short": "at least {min_length} values",
    "too_long": "at most {max_length} values",
    "none_required": "null",
    "dict_type": "keys with values",
    "mapping_type": "keys with values",
    "dataclass_type": "keys with values",
    "model_attributes_type": "keys with values",
}


class _Location(NamedTuple):
    keys: tuple[str, ...]  # as written
    owner: Any  # the type of what is wrong; Any where no hint tells it
    choice: tuple[str, ...] | None  # the keys of the first union of several kinds of value on the way


def explain(
    cls: type, errors: Sequence[Any], *, where: str = "", options: Mapping[str, str] | None = None
) -> list[str]:
    """A line for each wrong value of `cls`; `errors` are pydantic's.

    `where` begins key paths; `options` gives, by key, what is said in its place: an option of a command line.
    """
    placed = [(_location(cls, error["loc"]), error) for error in errors]
    lines: list[str] = []
    for place, error in placed:
        rivals = [(p, e) for p, e in placed if place.choice is not None and p.choice == place.choice]
        if rivals and not all(_mismatch(p, e) for p, e in rivals):
            if _mismatch(place, error):
                continue  # another alternative was meant, and says what is wrong
            rivals = []
        alternatives = dict.fromkeys(_requirement(e) for _, e in rivals) if rivals else {}
        lines.append(_line(place, error, " or ".join(alternatives), where, options or {}))
    return list(dict.fromkeys(lines))


def fields_of(owner: Any) -> dict[str, Any]:
    """The fields of a configuration with their types; none for anything else."""
    if dataclasses.is_dataclass(owner):
        return _hints(typing.cast(Any, owner))
    members = _members(owner)
    return fields_of(members[0]) if len(members) == 1 else {}  # a dataclass or none


def _line(place: _Location, error: Any, alternatives: str, where: str, options: Mapping[str, str]) -> str:
    keys, owner = place.keys, place.owner
    path = where + ".".join(keys)
    match error["type"]:
        case "unexpected_keyword_argument":
            close = difflib.get_close_matches(keys[-1], fields_of(owner), n=1, cutoff=0.5)
            known = (
                f"did you mean '{close[0]}'?"
                if close
                else f"known keys: {', '.join(sorted(fields_of(owner)))}"
            )
            return f"unknown key '{path}': {known}"
        case "missing" | "missing_keyword_only_argument" if not keys[-1].isdecimal():
            return f"missing key '{path}'"
        case "missing":
            outer = where + ".".join(keys[:-1])
            return f"'{outer}' is {error['input']!r}: it lacks value {int(keys[-1]) + 1}"
        case "union_tag_not_found":
            return f"missing key '{path}.kind': one of {error['ctx'].get('expected_tags', _tags(owner))}"
        case "union_tag_invalid":
            return (
                f"'{path}.kind' is {error['ctx']['tag']!r}: it must be one of {error['ctx']['expected_tags']}"
            )
        case "value_error":
            said = str(error["ctx"]["error"])
            named = said.partition(" ")[0]
            if not keys and named in options:
                return options[named] + said.removeprefix(named)
            return f"{path + ': ' if path else ''}{said}"
        case _:
            required = alternatives or _requirement(error)
            if keys and keys[0] in options:
                return f"{options[keys[0]]} {_typed(error['input'])}: {required}"
            return f"'{path}' is {error['input']!r}: it must be {required}"


def _requirement(error: Any) -> str:
    words = REQUIREMENTS.get(error["type"])
    if words is None:
        return error["msg"][0].lower() + error["msg"][1:]
    return words.format(**error.get("ctx", {}))


def _mismatch(place: _Location, error: Any) -> bool:
    """Whether a union's alternative is refused because the value is of another type."""
    kind = error["type"]
    other = kind.endswith(("_type", "_parsing")) or kind in ("literal_error", "int_from_float")
    return other and place.keys == place.choice


def _typed(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(_typed, value)) if isinstance(value, list | tuple) else str(value)


def _location(cls: type, location: Sequence[Any]) -> _Location:
    # Pydantic puts into a location, beside keys and indices, the tag or the label of the alternative that it tried.
    owner: Any = cls
    keys: list[str] = []
    choice: tuple[str, ...] | None = None
    for part in map(str, location):
        alternatives = _alternatives(owner)
        if part in fields_of(owner):
            keys.append(part)
            owner = fields_of(owner)[part]
        elif keys and (member := _tagged(owner, part)) is not None:
            if len(alternatives) > 1 and part != _kind(member):
                choice = choice or tuple(keys)
            owner = member
        elif len(alternatives) > 1:
            choice = choice or tuple(keys)
            owner = next((a for a in alternatives if part.startswith(f"{_origin_name(a)}[")), Any)
        else:
            keys.append(part)
            owner = _inner(owner)
    return _Location(tuple(keys), owner, choice)


def _alternatives(owner: Any) -> list[Any]:
    """The members of a union, without None; the type itself where it is none."""
    if typing.get_origin(owner) in (typing.Union, types.UnionType):
        return [
            inner for arg in typing.get_args(owner) if arg is not type(None) for inner in _alternatives(arg)
        ]
    return [owner]


def _inner(owner: Any) -> Any:
    """The type of a list's or a mapping's values."""
    for member in _alternatives(owner):
        arguments = [arg for arg in typing.get_args(member) if arg is not Ellipsis]
        if typing.get_origin(member) in (tuple, list):
            return arguments[0]
        if typing.get_origin(member) is dict:
            return arguments[1]
        if dataclasses.is_dataclass(member):
            return member  # an unknown key of it
    return Any


def _origin_name(owner: Any) -> str:
    return getattr(typing.get_origin(owner), "__name__", "")


@cache
def _hints(owner: Any) -> dict[str, Any]:
    return {
        name: hint
        for name, hint in typing.get_type_hints(owner).items()
        if name in {f.name for f in dataclasses.fields(owner)}
    }


def _members(owner: Any) -> list[Any]:
    return [member for member in _alternatives(owner) if dataclasses.is_dataclass(member)]


def _tags(owner: Any) -> list[Any]:
    return [tag for member in _members(owner) if (tag := _kind(member)) is not None]


def _tagged(owner: Any, part: str) -> Any:
    return next((m for m in _members(owner) if part in (m.__name__, _kind(m))), None)


def _kind(member: Any) -> Any:
    field = getattr(member, "__dataclass_fields__", {}).get("kind")
    return getattr(field.default, "default", field.default) if field else None
