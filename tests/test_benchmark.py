"""jobs/benchmark.py: what it says of checkouts of others' code that are not there."""

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPOSITORIES = {
    "llamagen": "github.com/FoundationVision/LlamaGen",
    "official": "github.com/ApexGen-X/MergeVQ",
}


def error_of(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What `python jobs/benchmark.py ARGUMENTS` says on standard error when it measures nothing."""
    monkeypatch.syspath_prepend(ROOT / "jobs")
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module("benchmark").main()
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    return said.err


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_measurement_beside_a_peer_says_in_one_line_that_it_needs_a_checkout(name, monkeypatch, capsys):
    said = error_of([name], monkeypatch, capsys)
    assert said == f"benchmark.py: error: {name} needs --{name} DIR, a checkout of {REPOSITORIES[name]}\n"


@pytest.mark.parametrize("name", REPOSITORIES)
@pytest.mark.parametrize("there", [False, True], ids=["no folder", "an empty folder"])
def test_a_folder_that_is_no_checkout_of_the_peer_is_one_line_that_names_a_missing_file(
    name, there, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "checkout"
    if there:
        folder.mkdir()
    said = error_of([name, f"--{name}", str(folder)], monkeypatch, capsys)
    assert said.startswith(
        f"benchmark.py: error: --{name} {folder}: no checkout of {REPOSITORIES[name]}, for it has no "
    )
    assert said.count("\n") == 1
    assert said.endswith(".py\n")


def test_a_checkout_that_lacks_one_file_is_told_which(tmp_path, monkeypatch, capsys):
    for file in ("autoregressive/models/gpt.py", "autoregressive/models/generate.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    said = error_of(["llamagen", "--llamagen", str(tmp_path)], monkeypatch, capsys)
    assert said.endswith("for it has no utils/drop_path.py\n")
