"""Sizes: one number for a square, height and width for any other; written and stored in one way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq.image_size import grid_of, height_width, parse_size, size_text, square_grid
from mergevq.presets import preset
from mergevq.tokenizer import TokenizerConfig

sides = st.integers(1, 4096)


@given(sides, sides)
def test_every_way_to_write_a_size_means_the_same(height: int, width: int) -> None:
    expected = height if height == width else (height, width)
    for written in (f"{height}x{width}", f" {height} x {width} ", [height, width], (height, width)):
        assert parse_size(written) == expected
    assert parse_size(size_text(expected)) == expected
    assert height_width(expected) == (height, width)
    assert parse_size(height) == parse_size(str(height)) == parse_size(float(height)) == height


@pytest.mark.parametrize(
    "written", [0, -1, 1.5, True, None, "", "x", "48x", "48x64x3", "0x4", [], [1, 2, 3], [4, 0], {}]
)
def test_what_is_no_size_is_named_with_the_fix(written: object) -> None:
    with pytest.raises(InputError, match=r"is no size: give .* 48x64 or \[48, 64\]"):
        parse_size(written)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 16))
def test_a_grid_has_rows_down_and_columns_across(rows: int, columns: int, cell: int) -> None:
    assert grid_of((rows * cell, columns * cell), cell) == (rows, columns)
    if cell > 1:
        with pytest.raises(InputError, match="do not divide into cells"):
            grid_of((rows * cell, columns * cell + 1), cell)


def test_only_square_numbers_have_a_square_grid() -> None:
    assert [square_grid(cells) for cells in (0, 1, 12, 36)] == [None, (1, 1), None, (6, 6)]


@pytest.mark.parametrize(
    ("written", "stored"), [("48x64", [48, 64]), ([48, 64], [48, 64]), ("64x64", 64), (64, 64)]
)
def test_a_configuration_stores_a_square_as_one_number(written: object, stored: object) -> None:
    tree = to_tree(preset("test_gr"))
    assert tree["image_size"] == 16, "as ever"
    config = parse(TokenizerConfig, {**tree, "image_size": written})
    assert to_tree(config)["image_size"] == stored
    assert parse(TokenizerConfig, to_tree(config)) == config


def test_a_configuration_refuses_sizes_that_do_not_divide() -> None:
    tree = to_tree(preset("test_gr"))
    with pytest.raises(InputError, match=r"^image_size: 'large' is no size: give"):
        parse(TokenizerConfig, {**tree, "image_size": "large"})
    with pytest.raises(InputError, match="image_size 48 x 62 is not a multiple of the encoder's reduction 4"):
        parse(TokenizerConfig, {**tree, "image_size": [48, 62]})
