"""The tokenizer of a generator's recipe, whose codes are learnt: found, and checked against the model."""

from __future__ import annotations

from mergevq.errors import InputError
from mergevq.image_size import size_text
from mergevq_platform.recipe import Recipe
from mergevq_platform.storage.tokenizer_ref import TokenizerRef, find_tokenizer, mismatch


def tokenizer_of(recipe: Recipe, place: str | None = None) -> TokenizerRef:
    """The tokenizer that a generator's recipe names, looked for at `place` if that is given.

    At `place` may lie one with another Source Recovery. Raises `InputError` if there is none, if its other weights differ, or
    if it does not fit the model.
    """
    task = recipe.generator
    assert task.tokenizer is not None
    found = find_tokenizer(
        place or task.tokenizer,
        sha256=task.tokenizer_sha256,
        codes_sha256=task.tokenizer_codes_sha256,
        key="task.tokenizer" if place is None else "tokenizer",
    )
    require_fit(recipe, found)
    return found


def require_maker(recipe: Recipe, made_by: TokenizerRef) -> None:
    """Raise `InputError` if the code set was made by another tokenizer than the recipe says, or one that does not fit."""
    task = recipe.generator
    if not made_by.makes_codes_of(task.tokenizer_sha256, task.tokenizer_codes_sha256):
        raise InputError(
            mismatch(f"task.codes: the maker of {task.codes}", made_by.sha256, task.tokenizer_sha256 or "")
        )
    require_fit(recipe, made_by)


def require_fit(recipe: Recipe, tokenizer: TokenizerRef) -> None:
    """Raise `InputError` if a generator's codes are not those of the tokenizer: other bits, another grid, another size."""
    model = recipe.generator.model
    if tokenizer.vocabulary.bit_count() != 1:
        raise InputError(
            f"the tokenizer at {tokenizer.location} has {tokenizer.vocabulary} codes, not a power of two: generators take LFQ's codes"
        )
    if 2**model.bits != tokenizer.vocabulary:
        raise InputError(
            f"task.model.bits is {model.bits} (2^{model.bits} codes), but the tokenizer at {tokenizer.location} has "
            f"{tokenizer.vocabulary} codes: set task.model.bits to {tokenizer.vocabulary.bit_length() - 1}"
        )
    if model.grid_tokens != tokenizer.grid_tokens:
        raise InputError(
            f"task.model.grid_tokens is {model.grid_tokens}, but the tokenizer at {tokenizer.location} has a grid of "
            f"{tokenizer.grid_tokens}: make them equal"
        )
    if model.rows_columns != tokenizer.grid:
        rows, columns = tokenizer.grid
        raise InputError(
            f"task.model.grid is {size_text(model.rows_columns)}, but the tokenizer at {tokenizer.location} has {rows} rows of "
            f"{columns} cells: set task.model.grid=[{rows},{columns}]"
        )
    if recipe.data.views.image_size != tokenizer.image_size:
        raise InputError(
            f"data.views.image_size is {size_text(recipe.data.views.image_size)}, but the tokenizer at {tokenizer.location} "
            f"works at {size_text(tokenizer.image_size)}: make them equal"
        )
