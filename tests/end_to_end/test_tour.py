"""The notebook docs/tour.ipynb: it runs from top to bottom, and the outputs that are stored belong to its source."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tour.ipynb"

# Stands for ipywidgets, which is not installed here: every choice of a slider, one after the other.
WIDGETS = """
class SelectionSlider:
    def __init__(self, options, description):
        self.options = options


def interact(function, keep):
    for option in keep.options:
        print("slider at", option)
        function(option)
"""


@pytest.fixture(scope="module")
def tour() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tour", ROOT / "docs" / "tour.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def stored() -> NotebookNode:
    return nbformat.read(PAGE, as_version=4)


def outputs(notebook: NotebookNode) -> list[list[NotebookNode]]:
    """What each code cell gave, without what it said on stderr."""
    return [
        [output for output in cell.outputs if output.get("name") != "stderr"]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def images(found: list[NotebookNode]) -> int:
    return sum("image/png" in output.get("data", {}) for output in found)


def text(found: list[NotebookNode]) -> str:
    return "".join(
        output.get("text", "") + "".join(output.get("data", {}).get("text/markdown", "")) for output in found
    )


def test_the_stored_outputs_are_those_of_the_source(tour: ModuleType, stored: NotebookNode) -> None:
    assert stored.metadata.mergevq.source_sha256 == tour.source_sha256(stored), "run python docs/tour.py"
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "from top to bottom"
    found = outputs(stored)
    assert not [output for cell in found for output in cell if output.output_type == "error"]
    assert sum(map(images, found)) == 4, "reconstructions, clusters, recovered, the curve"
    assert any("| 256 | 3,072 | 0 |" in text(cell) for cell in found)
    assert PAGE.stat().st_size < 1_500_000


def test_the_tour_runs_from_top_to_bottom(
    tour: ModuleType, stored: NotebookNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "widgets").mkdir()
    (tmp_path / "widgets" / "ipywidgets.py").write_text(WIDGETS)
    paths = [tmp_path / "widgets", ROOT / "platform", ROOT]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, paths), *filter(None, sys.path)]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    few = "STEPS, IMAGES = 2, 24"
    done = outputs(tour.executed(stored, tmp_path, few))  # raises where a cell fails
    before = outputs(stored)
    for now, then in zip(done, before, strict=True):
        if "no ipywidgets" not in text(then):
            assert images(now) == images(then)
            continue
        assert text(now).count("slider at") == 5
        assert images(now) == 10
    assert "in 2 steps" in "".join(map(text, done))
