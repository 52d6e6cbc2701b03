"""The landing page goes on to pages of its own server, made of ids alone, and nowhere else."""

from __future__ import annotations

import html
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from mergevq_platform.tracking import landing
from mergevq_platform.tracking.links import curve_link

RUN = "0123456789abcdef" * 2


def target(query: dict[str, str]) -> str:
    page = landing.landing_page(query)
    assert page is not None
    found = re.search(r'href="([^"]*)"', page)
    assert found is not None
    return html.unescape(found[1])


@pytest.mark.parametrize("base", ["http://127.0.0.1:5000", "https://curves.example/mlf", "http://[::1]:80"])
@pytest.mark.parametrize("wanted", [{}, {"view": "mergevq-3"}, {"run_id": RUN}])
def test_a_link_through_the_landing_page_ends_at_the_same_address(base: str, wanted: dict[str, str]) -> None:
    address = curve_link(base, "12", wanted.get("run_id"), view=wanted.get("view"))
    through = landing.landing_link(address)
    assert through.startswith(f"{base}/mergevq?experiment=12")
    query = dict(part.split("=") for part in through.partition("?")[2].split("&"))
    assert target(query) == curve_link(".", "12", wanted.get("run_id"), view=wanted.get("view"))
    assert address == base + target(query).removeprefix(".")


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"run": RUN},
        {"experiment": ""},
        {"experiment": "1/../../evil"},
        {"experiment": "//evil.example"},
        {"experiment": "1\n"},
        {"experiment": "٣"},
        {"experiment": '1"><script>'},
        {"experiment": "1", "run": "javascript:alert(1)"},
        {"experiment": "1", "run": RUN.upper()},
        {"experiment": "1", "view": "a&next=//evil.example"},
        {"experiment": "1", "next": "//evil.example"},
    ],
)
def test_what_is_no_id_is_refused(query: dict[str, str]) -> None:
    assert landing.landing_page(query) is None


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:5000", "http://h/#/models", "http://h/#/experiments/x/runs?a=b"]
)
def test_an_address_of_another_form_stays(address: str) -> None:
    assert landing.landing_link(address) == address


def test_mlflow_is_told_of_the_page_by_the_installation() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["mlflow.app"] == {landing.APP_NAME: landing.ENTRY_POINT}
    assert landing.lacking() is None


def test_an_old_mlflow_and_an_old_installation_are_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda group: ())
    assert "install it again" in str(landing.lacking())
    monkeypatch.setattr(metadata, "version", lambda name: "3.9.0")
    assert str(landing.lacking()) == "MLflow 3.9.0 has no place for a landing page: install 3.10 or newer"
