"""Names of registered models and their aliases: what MLflow would refuse is refused before anything is uploaded or trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mergevq.errors import InputError
from mergevq_platform import cli
from mergevq_platform.evaluation import registering
from mergevq_platform.operations.submission import read_verb
from mergevq_platform.tracking.models import check_target, parse_target

BAD_ALIASES = ["v2", "V10", "latest", "Latest", "a.b", "", "a b", "a/b", "x" * 256, "é", "a\n"]
BAD_NAMES = ["a/b", "a:b", "", " ", "a@b", "it's", 'a"b', "..", "x" * 256, "a\nb"]


@pytest.mark.parametrize("alias", BAD_ALIASES)
def test_an_alias_that_mlflow_keeps_or_cannot_hold_is_refused(alias: str) -> None:
    with pytest.raises(InputError, match="alias '"):
        check_target("shapes", alias)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_no_model_can_have_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="model name '"):
        check_target(name)


def test_the_rules_are_those_of_mlflow() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils import validation

    def their_aliases(text: str) -> None:
        validation._validate_model_alias_name(text)
        validation._validate_model_alias_name_reserved(text)

    for text in BAD_ALIASES[:6]:  # still rules of theirs
        with pytest.raises(MlflowException):
            their_aliases(text)
    for text in ("a/b", "a:b", "", " ", ".."):
        with pytest.raises(MlflowException):
            validation._validate_model_name(text)
    for fine in ("shapes", "gr_256-d64", "two words", "gr.256", "größe"):
        check_target(fine, "champion_2-a")
        their_aliases("champion_2-a")
        validation._validate_model_name(fine)


def test_a_name_may_carry_an_alias() -> None:
    assert parse_target("shapes") == ("shapes", None)
    assert parse_target("shapes@champion") == ("shapes", "champion")
    with pytest.raises(InputError, match="alias ''"):
        parse_target("shapes@")


@pytest.mark.parametrize("target", ["shapes@v2", "shapes@latest", "a/b", "shapes@", ""])
def test_training_and_submitting_refuse_it_before_anything_begins(
    target: str,
    small_recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "home"))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    words = ["train", str(tmp_path / "small.yaml"), "--register", target]
    assert cli.run(words) == 2
    assert ("alias" if "@" in target else "model name") in capsys.readouterr().err
    with pytest.raises(InputError, match=r"alias|model name"):
        read_verb(words, cli.parse)
    assert not (tmp_path / "home").exists()


def test_registering_refuses_it_before_the_store_is_asked(tmp_path: Path) -> None:
    for name, alias in (("shapes", "v2"), ("a:b", None)):
        with pytest.raises(InputError, match=r"alias 'v2'|model name 'a:b'"):
            registering.register("no-such-run", name, alias=alias, home=tmp_path / "home")
    assert not (tmp_path / "home").exists()
