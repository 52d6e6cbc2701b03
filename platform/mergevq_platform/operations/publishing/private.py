"""Recipes and protocols as they are published: places of this machine and of its storage become names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergevq.config import to_tree
from mergevq.hub import on_hub, short_name
from mergevq_platform.recipe import ResolvedRecipe, named_paths, parse_resolved


def published_recipe(recipe: ResolvedRecipe, tokenizer: str | None = None) -> ResolvedRecipe:
    """The recipe with names in the place of paths and URIs; addresses of the Hub stay. Hashes tell files, whatever their place.

    `tokenizer` is the address of a generator's tokenizer, where it is published too.
    """
    tree = to_tree(recipe)
    for key, _, path, _ in named_paths(recipe):
        if not on_hub(path):
            _set(tree, key, short_name(path))
    if tokenizer is not None:
        _set(tree, "task.tokenizer", tokenizer)
    return parse_resolved(tree)


def without_places(value: Any) -> Any:
    """Plain values of a protocol with names in the place of absolute paths and URIs; addresses of the Hub stay."""
    match value:
        case str() if _is_place(value):
            return short_name(value)
        case Mapping():
            return {key: without_places(part) for key, part in value.items()}
        case list() | tuple():
            return [without_places(part) for part in value]
    return value


def _is_place(text: str) -> bool:
    return not on_hub(text) and " " not in text and (text.startswith("/") or "://" in text)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *outer, last = key.split(".")
    for part in outer:
        tree = tree[part]
    tree[last] = value
