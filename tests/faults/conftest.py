"""What the fault tests share: the run that nothing disturbed, a cluster to break, and the table of what was seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

import undisturbed
from disturbance import Disturbed, level
from raynodes import Nodes

RESULTS = Path(__file__).resolve().parents[2] / "docs"
STEPS = 60


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    noticed_seconds: float | None
    again_seconds: float | None
    outcome: str
    weights: str


@pytest.fixture(scope="session")
def report() -> Iterator[Callable[..., None]]:
    """Takes the lines; at the end of the session they go into docs/faults.json and docs/faults.md, beside those of other sessions."""
    rows: list[Row] = []
    yield lambda *values: rows.append(Row(*values))
    if not rows:
        return
    path = RESULTS / "faults.json"
    known = {row["fault"]: row for row in json.loads(path.read_text())} if path.is_file() else {}
    known |= {row.fault: asdict(row) for row in rows}
    path.write_text(json.dumps(list(known.values()), indent=1) + "\n")
    lines = [
        "| fault | noticed after | training again after | outcome | final weights |",
        "|---|---:|---:|---|---|",
    ]
    for row in known.values():
        seconds = [
            f"{row[key]:.1f} s" if row[key] is not None else ""
            for key in ("noticed_seconds", "again_seconds")
        ]
        lines.append(
            f"| {row['fault']} | {seconds[0]} | {seconds[1]} | {row['outcome']} | {row['weights']} |"
        )
    (RESULTS / "faults.md").write_text("\n".join(lines) + "\n")


@pytest.fixture
def tree(small_recipe: dict[str, Any]) -> dict[str, Any]:
    """Two workers, sixty steps, a checkpoint every ten."""
    small_recipe["cluster"] = {"workers": 2, "device": "cpu"}
    return small_recipe | {"steps": STEPS, "checkpoint_every": 10}


@pytest.fixture(scope="session")
def references() -> dict[str, Any]:
    """Undisturbed runs of this session."""
    return {}


@pytest.fixture
def expected(tree: dict[str, Any], references: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """State and metrics of the undisturbed run."""
    if "two" not in references:
        references["two"] = undisturbed.train(tree, tmp_path / "undisturbed", world_size=2)
    return references["two"]


@pytest.fixture(scope="session")
def broken_nodes() -> Iterator[Nodes]:
    """A cluster that all tests of the session break and mend."""
    with Nodes().start() as nodes:
        yield nodes


@pytest.fixture
def nodes(broken_nodes: Nodes) -> Nodes:
    """The cluster with exactly two nodes for workers."""
    level(broken_nodes, 2)
    return broken_nodes


@pytest.fixture
def disturb(nodes: Nodes, tree: dict[str, Any], tmp_path: Path) -> Iterator[Callable[..., Disturbed]]:
    """Start a training of `tree` under a name."""
    started: list[Disturbed] = []

    def start(name: str, **options: Any) -> Disturbed:
        started.append(
            Disturbed(options.pop("nodes", nodes), tmp_path, options.pop("tree", tree), name, **options)
        )
        return started[-1]

    yield start
    for one in started:
        one.ended.set()
        one.driver.kill()
