"""One rule for the names of runs, sweeps and recipes, said before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mergevq.errors import InputError
from mergevq_platform import cli
from mergevq_platform import recipe as recipes
from mergevq_platform.operations.submission import read_verb
from mergevq_platform.storage import naming
from mergevq_platform.storage.runs import Run, run_around
from mergevq_platform.tracking.models import fetch_model
from mergevq_platform.tracking.store import Store

BAD = ["größe", "a/b", "../x", ".hid", "a" * 300, "run ", " run", "a:b", "", "a\nb", "-x", "run\n"]


@given(st.text())
def test_a_name_made_of_any_text_will_do(text: str) -> None:
    assert naming.check_name(naming.fitted(text), "name") == naming.fitted(text)


def test_what_we_add_to_a_name_leaves_it_one_that_will_do() -> None:
    longest = "a" * (naming.LONGEST - naming.ADDED)
    trial = f"{naming.derived(longest, '20260101-000000-abcd')}-0000"
    assert naming.check_name(trial, "name") == trial


@pytest.mark.parametrize("name", BAD)
def test_the_command_line_refuses_a_name_in_one_line_and_makes_nothing(
    name: str,
    small_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home, file = tmp_path / "home", tmp_path / "small.yaml"
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    file.write_text(yaml.safe_dump(small_recipe))
    for words in (
        ["train", str(file), f"--name={name}"],
        ["sweep", str(file), "--over", "steps=1,2", f"--name={name}"],
    ):
        assert cli.run(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("mergevq: --name '")
        assert "letters" in line
        with pytest.raises(InputError, match="--name"):
            read_verb(words, cli.parse)
    assert not home.exists()


@pytest.mark.parametrize("name", [bad for bad in BAD if len(bad) < 100])
def test_a_recipe_and_a_sweep_file_keep_the_same_rule(
    name: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    from mergevq_platform.sweeps import Grid, Sweep, choice, mean_psnr

    with pytest.raises(InputError, match="will not do: take letters"):
        recipes.resolve(small_recipe | {"name": name})
    sweep = Sweep(
        name=name,
        question="?",
        recipe="demo",
        space={"steps": choice(1, 2)},
        search=Grid(),
        objectives=(mean_psnr(),),
    )
    with pytest.raises(InputError, match="will not do: take letters"):
        sweep.check()


@pytest.mark.parametrize(
    ("file", "name"), [("my recipe.yaml", "my_recipe"), ("größe.yaml", "gro_e"), (".yaml.yaml", "yaml")]
)
def test_the_name_of_a_recipe_file_is_made_to_fit(
    file: str, name: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    del small_recipe["name"]
    (tmp_path / file).write_text(yaml.safe_dump(small_recipe))
    assert recipes.load(tmp_path / file).name == name


def test_names_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    Run.new("Base", home=tmp_path).directory.mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"run 'Base' exists already .* 'base' differs from it in case alone"
    ):
        Run.new("base", home=tmp_path)
    Run.new("base-2", home=tmp_path)


def test_a_run_called_like_a_checkpoint_is_a_run(tmp_path: Path) -> None:
    directory = tmp_path / "ray" / "checkpoint_9"
    (directory / "checkpoint_000000008").mkdir(parents=True)
    (directory / "recipe.yaml").touch()
    for inside in (directory, directory / "checkpoint_000000008"):
        if inside != directory:
            (inside / "checkpoint.json").touch()
        found = run_around(str(inside), tmp_path)
        assert found is not None
        assert found.name == "checkpoint_9"


@pytest.mark.parametrize("uri", ["models:/", "models://", "models:/@", "models:/.."])
def test_a_model_without_a_name_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(InputError, match="names no model: write models:/NAME@alias"):
        fetch_model(Store.at(tmp_path), uri, tmp_path / "models")
