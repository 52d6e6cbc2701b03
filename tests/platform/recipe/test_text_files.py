"""Text that people give is UTF-8, with or without its mark, or is named with the line that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mergevq.errors import InputError
from mergevq.official import config_of
from mergevq_platform import recipe as recipes
from mergevq_platform.sweeps import loading

ACCENTED = "# première ligne\n# größe\n"
SWEEP = (
    "from mergevq_platform.sweeps import Grid, Sweep, choice, mean_psnr\n"
    "SWEEP = Sweep(name='s', question='größe?', recipe='demo', space={'steps': choice(1, 2)}, search=Grid(),\n"
    "              objectives=(mean_psnr(),))\n"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_recipe_is_read_with_and_without_a_mark(
    encoding: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["description"] = "größe"
    text = ACCENTED + yaml.safe_dump(small_recipe, allow_unicode=True)
    (tmp_path / "recipe.yaml").write_text(text, encoding=encoding)
    recipe = recipes.load(tmp_path / "recipe.yaml")
    assert (recipe.description, recipe.name) == ("größe", "small")


def test_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("# plain\n" + ACCENTED, encoding="latin-1")
    message = rf"{file} is not UTF-8 \(line 2\): save it as UTF-8"
    with pytest.raises(InputError, match=message):
        recipes.load(file)
    with pytest.raises(InputError, match=message):
        config_of(file)


def test_a_sweep_file_is_read_as_python_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "sweep.py"
    for encoding, head in (("utf-8", ""), ("utf-8-sig", ""), ("latin-1", "# -*- coding: latin-1 -*-\n")):
        file.write_text(head + SWEEP, encoding=encoding)
        assert loading.load(file).question == "größe?"
    file.write_text(SWEEP, encoding="latin-1")
    with pytest.raises(InputError, match=r"sweep\.py is not UTF-8 \(line 2\): save it as UTF-8"):
        loading.load(file)
