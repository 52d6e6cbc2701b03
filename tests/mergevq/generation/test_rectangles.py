"""Generators of grids that are no squares: positions by rows and columns, and configurations stored as before."""

from __future__ import annotations

import pytest
import torch

from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq.generation import Generator, RandomOrderConfig, generator_preset, parse_generator, rotary


def tree(kind: str, **changed: object) -> dict[str, object]:
    return to_tree(generator_preset(f"test_{kind}")) | changed


@pytest.mark.parametrize("kind", ["raster", "mergear", "random_order"])
def test_a_square_is_stored_without_rows_and_columns(kind: str) -> None:
    assert "grid" not in tree(kind)
    config = parse_generator(
        tree(kind, grid_tokens=12, grid=[3, 4], **({} if kind == "raster" else {"keeps": [4]}))
    )
    assert config.rows_columns == (3, 4)
    assert to_tree(config)["grid"] == [3, 4]
    assert parse_generator(to_tree(config)) == config
    assert parse_generator(tree(kind)).rows_columns == (4, 4)


def test_cells_are_rotated_by_their_row_and_column() -> None:
    generator = Generator(parse_generator(tree("raster", grid_tokens=12, grid=[3, 4])))
    shape = generator.config.transformer
    places = torch.tensor([[row, column] for row in range(3) for column in range(4)], dtype=torch.float32)
    assert torch.equal(generator.cell_rotation(), rotary.rotations(places, shape.head_dim, shape.rope_base))


def test_stretched_ranks_reach_over_the_image_along_both_axes() -> None:
    config = parse_generator(
        tree("random_order", grid_tokens=32, grid=[4, 8], keeps=[4], positions="stretched")
    )
    assert isinstance(config, RandomOrderConfig)
    generator, shape = Generator(config), config.transformer
    places = torch.tensor([[0.0, 0.0], [0.0, 4.0], [2.0, 0.0], [2.0, 4.0]])  # 2 x 2 ranks over 4 x 8 cells
    assert torch.equal(generator.kept_rotation(4), rotary.rotations(places, shape.head_dim, shape.rope_base))


def test_a_grid_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"grid_tokens 12 is not a square number: give grid"):
        parse_generator(tree("raster", grid_tokens=12))
    with pytest.raises(InputError, match=r"grid \[3, 5\] does not have the 12 cells"):
        parse_generator(tree("raster", grid_tokens=12, grid=[3, 5]))
