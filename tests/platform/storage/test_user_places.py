"""`~` is the home wherever a place is named: after a sign of equality no shell says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergevq.errors import InputError
from mergevq_platform import cli
from mergevq_platform.evaluation.extractor_choice import parse_extractor
from mergevq_platform.recipe import complete, locate
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.tracking.store import Store


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose home is a folder of the test's, and who is elsewhere."""
    home, here = tmp_path / "me", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    return home


def test_a_database_named_from_home_lies_there(user: Path) -> None:
    store = Store.at(Path("runs"), "sqlite:///~/ml.db")
    assert store.uri == f"sqlite:///{user}/ml.db"
    with pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI .* no user of that name here"):
        Store.at(Path("runs"), "sqlite:///~no-such-user/ml.db")


def test_storage_is_written_out_for_workers_in_other_folders(user: Path, tmp_path: Path) -> None:
    for given, meant in (("~/ck", user / "ck"), ("ck", tmp_path / "here" / "ck")):
        assert Run.new("run", home=tmp_path / "runs", storage=given).storage == str(meant)
    assert checkpoints.absolute("s3://bucket/~/x") == "s3://bucket/~/x"
    with pytest.raises(InputError, match="no user of that name here"):
        Run.new("run", home=tmp_path / "runs", storage="~no-such-user/ck")


def test_options_after_a_sign_of_equality_mean_the_home(
    user: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.parse(["compare", "a", "--out=~/comparison"]).out == user / "comparison"
    assert cli.parse(["data", "info", "x", "--sheet=~/sheet.png"]).sheet == user / "sheet.png"
    with pytest.raises(SystemExit):
        cli.parse(["compare", "a", "--out=~no-such-user/x"])
    assert "no user of that name here" in capsys.readouterr().err


def test_files_that_a_recipe_names_from_home_are_found(
    user: Path, small_recipe: dict[str, Any], tokenizer_directory: Path
) -> None:
    (user / "images").symlink_to(small_recipe["data"]["path"])
    (user / "vgg.pth").write_bytes(b"")
    small_recipe["data"]["path"] = "~/images"
    small_recipe["task"]["losses"]["perceptual"] = {
        "kind": "lpips",
        "backbone": "~/vgg.pth",
        "heads": "~/no.pth",
    }
    recipe = locate(complete(small_recipe))
    assert recipe.data.path == str(user / "images")
    perceptual: Any = recipe.tokenizer.losses.perceptual
    assert (perceptual.backbone, perceptual.heads) == (str(user / "vgg.pth"), str(user / "no.pth"))
    (user / "tokenizer").symlink_to(tokenizer_directory)
    assert checkpoints.is_bare("~/tokenizer")
    with checkpoints.weights("~/tokenizer") as found:
        assert found == user / "tokenizer"
    extractor: Any = parse_extractor("{kind: inception, weights: ~/vgg.pth}")
    assert extractor.weights == str(user / "vgg.pth")


def test_nothing_is_made_that_is_called_tilde(user: Path, tmp_path: Path) -> None:
    Store.at(Path("runs"), "sqlite:///~/ml.db").prepare()
    assert (user / "ml.db").is_file()
    assert not list((tmp_path / "here").iterdir())
