"""Writes docs/recipe_keys.md: every key of a recipe with its type, default and meaning, from the schema itself.

    python docs/recipe_keys.py

A key's meaning is the comment beside its field in the source, a table's introduction the docstring of its class.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import sys
import tokenize
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mergevq.config import to_tree
from mergevq_platform import tasks
from mergevq_platform.recipe import Recipe

PAGE = Path(__file__).with_name("recipe_keys.md")
WORDS = {int: "integer", float: "number", str: "text", bool: "`true` or `false`", type(None): "none"}
SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

INTRODUCTION = """\
# Every key of a recipe

Generated from the schema by `python docs/recipe_keys.py`; a test keeps it current. [Recipes](recipes.md) says how recipes are written.

A dotted path names a key in the YAML file and on the command line: `mergevq train demo optimizer.learning_rate=1e-3`. *none* is YAML's
`null`. Where several kinds stand under one path, the key `kind` chooses. A default of *required* is what a recipe or its preset
gives; `mergevq recipes NAME` prints a recipe with every key filled in.
"""


@dataclass
class Table:
    """The keys of one configuration class, and the paths at which it stands in a recipe."""

    cls: type
    paths: list[str]
    task: str  # the kind of task under whose key `task` it stands; empty: of every task
    kind: str | None
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)  # key, type, default, meaning

    @property
    def title(self) -> str:
        """The heading: the first path, and the kind where several share it."""
        if not self.paths[0]:
            return "The recipe itself"
        task = f" of a `{self.task}`" if self.task else ""
        return f"`{self.paths[0]}`" + task + (f", kind `{self.kind}`" if self.kind else "")


def tables(root: type = Recipe) -> list[Table]:
    """The tables of a configuration tree, in the order in which their keys are first met."""
    found: dict[type, Table] = {}

    def visit(cls: type, path: str, task: str) -> None:
        if cls in found:
            if path not in found[cls].paths:
                found[cls].paths.append(path)
            return
        table = found[cls] = Table(cls, [path], task, kind_of(cls))
        if path == "task":
            task = table.kind or ""
        comments = comments_of(cls)
        inner: list[tuple[type, str]] = []
        for name, info in fields_of(cls).items():
            classes = list(configs_in(info.annotation))
            inner += [(inner_class, f"{path}.{name}".lstrip(".")) for inner_class in classes]
            meaning = comments.get(name) or (first_sentence(classes[0]) if len(classes) == 1 else "")
            if name != "kind" or len(get_args(info.annotation)) > 1:
                table.rows.append((name, type_words(info), default_words(info), meaning))
        for inner_class, inner_path in inner:
            visit(inner_class, inner_path, task)

    visit(root, "", "")
    return list(found.values())


def page() -> str:
    """The whole page as Markdown."""
    parts = [INTRODUCTION]
    for table in tables():
        parts.append(f"## {table.title}\n")
        owners = [owner for owner in table.cls.__mro__ if fields_of(owner)]
        parts += [docstring(owner) + "\n" for owner in owners]
        if len(table.paths) > 1:
            parts.append("Also at " + ", ".join(f"`{path}`" for path in table.paths[1:]) + ".\n")
        if table.rows:
            lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
            lines += [
                f"| `{key}` | {words} | {default} | {meaning} |"
                for key, words, default, meaning in table.rows
            ]
            parts.append("\n".join(lines) + "\n")
        else:
            parts.append("No further keys.\n")
    return "\n".join(parts)


def fields_of(cls: type) -> dict[str, FieldInfo]:
    """The checked fields of a configuration class; empty for other classes."""
    fields: dict[str, FieldInfo] = dict(getattr(cls, "__pydantic_fields__", {}))
    if cls is Recipe:  # of the tasks a recipe knows no more than that they are some
        kinds = Union[tuple(tasks.find(kind) for kind in tasks.KINDS)]  # noqa: UP007 - made here
        fields["task"] = FieldInfo(annotation=kinds)
    return fields


def settings_of(cls: type) -> type:
    """The class that declares the keys of `cls`: a task's own class may add methods alone."""
    keys = fields_of(cls).keys()
    return next(owner for owner in reversed(cls.__mro__) if fields_of(owner).keys() == keys)


def kind_of(cls: type) -> str | None:
    """The literal that chooses this class among the kinds of a path; none: it stands alone."""
    info = fields_of(cls).get("kind")
    if info is None or get_origin(info.annotation) is not Literal:
        return None
    return "`, `".join(get_args(info.annotation))


def configs_in(annotation: Any) -> Iterator[type]:
    """Configuration classes that an annotation names, at any depth."""
    if isinstance(annotation, type) and "__pydantic_fields__" in vars(annotation):
        yield settings_of(annotation)
    for argument in get_args(annotation):
        yield from configs_in(argument)


def type_words(info: FieldInfo) -> str:
    """A field's type in words, its bounds with it."""
    return words_of(info.annotation, bounds_of(info.metadata))


def words_of(annotation: Any, bounds: str = "") -> str:
    """An annotation in words; `bounds` belong to its number."""
    if get_origin(annotation) is typing.Annotated:
        inner, *metadata = get_args(annotation)
        return words_of(inner, bounds_of(metadata) or bounds)
    if get_origin(annotation) in (Union, types.UnionType):
        configs = list(configs_in(annotation))
        rest = [words_of(part, bounds) for part in get_args(annotation) if not list(configs_in(part))]
        kinds = ", ".join(f"`{kind_of(cls)}`" for cls in configs)
        first = [f"table, kind {kinds}" if len(configs) > 1 else "table"] if configs else []
        return " or ".join(first + rest)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        if parts[-1] is Ellipsis:
            return f"list of {words_of(parts[0], bounds)}"
        return (
            f"list of {len(parts)}: {' and '.join(dict.fromkeys(words_of(part, bounds) for part in parts))}"
        )
    if list(configs_in(annotation)):
        return "table"
    return WORDS.get(annotation, f"`{getattr(annotation, '__name__', annotation)}`") + bounds


def bounds_of(metadata: Any) -> str:
    """Bounds such as ` ≥ 1` among an annotation's metadata."""
    found = []
    for part in metadata:
        inner = part.metadata if isinstance(part, FieldInfo) else [part]
        for bound in inner:
            found += [
                f" {sign} {getattr(bound, name):g}" for name, sign in SIGNS.items() if hasattr(bound, name)
            ]
    return " and".join(found)


def default_words(info: FieldInfo) -> str:
    """A field's default as a recipe would write it."""
    if info.default is PydanticUndefined and info.default_factory is None:
        return "*required*"
    value = info.get_default(call_default_factory=True, validated_data={})
    if fields_of(type(value)):
        tree = to_tree(value)
        return f"kind `{tree['kind']}`" if "kind" in tree else "its own defaults"
    if value is None:
        return "none"
    return f"`{json.dumps(value, ensure_ascii=False)}`" if value != "" else "empty"


def comments_of(cls: type) -> dict[str, str]:
    """The comment beside each field of a class, where its source has one; fields of parents included."""
    found: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not fields_of(owner):
            continue
        text = Path(inspect.getfile(owner)).read_text()
        (node,) = (
            n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ClassDef) and n.name == owner.__name__
        )
        spoken = comments_by_line(text)
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.end_lineno:
                lines = [spoken[line] for line in range(part.lineno, part.end_lineno + 1) if line in spoken]
                if lines:
                    found[part.target.id] = " ".join(lines)
    return found


def comments_by_line(text: str) -> dict[int, str]:
    """Line number → the comment on it."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.start[0]: token.string.lstrip("# ").replace("|", "\\|")
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def docstring(cls: type) -> str:
    """A class's docstring without the indentation of the source."""
    return inspect.cleandoc(cls.__doc__ or "")


def first_sentence(cls: type) -> str:
    """The first paragraph of a class's docstring, on one line."""
    return " ".join(docstring(cls).split("\n\n")[0].split()).replace("|", "\\|")


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit("usage: python docs/recipe_keys.py")
    PAGE.write_text(page())
