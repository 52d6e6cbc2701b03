"""Results are what they were: losses, gradients, codes, curves, generated codes, trials, resumes, and what was stored before.

On a machine with the fingerprint of the recording (processor with its flags, PyTorch's CPU capability, versions of the libraries that
compute) everything is compared with tolerance zero. On another machine these are compared exactly: numbers by address (kept counts,
orders, deals, seeds), recipes with their defaults, stored keys, names, protocols, image and code sets, trials' labels. Floats must agree
within 5% or 0.02 (gradient norms 25%, what counts images 30 points), of a training's steps only the first three, since each step
amplifies the rounding of those before; of integers that depend on rounding (codes, assignments) nine in ten. A small change can hide
there. To prove that nothing changed on such a machine, record with the tree before and compare after:

    python tests/golden/record.py --out DIR        # in the tree before
    MERGEVQ_GOLDEN=DIR pytest tests/golden          # in the tree after

Every run says at its end which of the two comparisons it made. What is asked of the product stands in `product.py` alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden import compare

HERE = Path(__file__).parent
RECORDED = Path(os.environ.get("MERGEVQ_GOLDEN") or HERE / "recorded")
ON_RAY = "sweep_on_ray"
SECTIONS = sorted(
    path.stem for path in (HERE / "recorded").glob("*.json") if path.stem not in ("machine", ON_RAY)
)
SHOWN = 12


@pytest.fixture(scope="session")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What this tree computes now, in a process of its own: nothing that other tests did reaches it."""
    asked = [item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")]
    wanted = [name for name in SECTIONS if name in asked]
    out = tmp_path_factory.mktemp("golden")
    command = [sys.executable, str(HERE / "record.py"), "--out", str(out), "--only", ",".join(wanted)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def same_machine(found: Path) -> bool:
    """Whether the recording was made on a machine like this, and so must agree bit for bit."""
    return compare.read(RECORDED, "machine") == compare.read(found, "machine")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "two_workers" else ()) for name in SECTIONS]
)
def test_results_are_what_they_were(name: str, found: Path, record_property: Any) -> None:
    same = same_machine(found)
    record_property("golden", compare.made(same, RECORDED))
    lines = compare.differences(compare.read(RECORDED, name), compare.read(found, name), same_machine=same)
    more = f"\n… and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    said = "\n".join(lines[:SHOWN])
    assert not lines, f"{name} ({compare.made(same, RECORDED)}):\n{said}{more}"


def test_a_training_that_was_stopped_and_went_on_is_the_undisturbed_one() -> None:
    resumed = [
        record["resumed"] for record in compare.read(RECORDED, "one_worker").values() if "resumed" in record
    ]
    assert len(resumed) == 6
    assert all(one["is_the_undisturbed_run"] and one["from"] == "checkpoint_000000007" for one in resumed)


def test_two_workers_have_one_gradient_and_begin_as_one_worker_does_to_rounding() -> None:
    alone, together = (compare.read(RECORDED, name) for name in ("one_worker", "two_workers"))
    assert alone.keys() == together.keys()
    for name, record in together.items():
        assert record["ranks_have_the_same_gradients"], name
        reports, others = record["reports"], alone[name]["reports"]
        assert reports.keys() == others.keys(), name
        if "train/kept_tokens" in reports:
            kept, alone_kept = (of["train/kept_tokens"]["values"] for of in (reports, others))
            assert kept == alone_kept[: len(kept)], name  # two workers stop at half of the steps
        # Terms that average over a pass differ a little: how a batch is cut into passes depends on the recipe's workers.
        first, other = (of["train/total"]["values"][0] for of in (reports, others))
        assert first == pytest.approx(other, rel=0.02 if name in AVERAGING else 1e-5), name


AVERAGING = (
    "tokenizer_gr_self",
    "tokenizer_gr_stand_in",
    "tokenizer_r_supervised",
    "tokenizer_g_bfloat16",
    "probe",
    "recovery_generated",
)


TREE: dict[str, Any] = {
    "steps": {"steps": [1, 4], "values": [1.0, 2.0]},
    "a": {"loss": 1.0, "kept": 9},
    "codes": {"here": "1f", "shape": [2], "mostly": [1] * 20},
    "b": [1.5, "x"],
    "proposed": {"tpe": [{"steps": n, "rate": 0.5} for n in range(20)]},
}


def proposed(others: int) -> dict[str, Any]:
    trials = [{"steps": n, "rate": 0.5} for n in range(20)]
    return {
        "proposed": {"tpe": [trial | {"steps": 99} if trial["steps"] < others else trial for trial in trials]}
    }


@pytest.mark.parametrize(
    ("change", "on_another"),
    [
        ({"a": {"loss": 1.0 + 2**-52, "kept": 9}}, False),
        ({"a": {"loss": 1.2, "kept": 9}}, True),
        ({"a": {"loss": 1.0, "kept": 10}}, True),
        ({"a": {"loss": 1.0, "held": 9}}, True),
        ({"codes": {"here": "2f", "shape": [2], "mostly": [1] * 20}}, False),
        ({"codes": {"here": "2f", "shape": [2], "mostly": [1] * 19 + [2]}}, False),
        ({"codes": {"here": "2f", "shape": [2], "mostly": [1] * 16 + [2] * 4}}, True),
        ({"b": [1.5, "y"]}, True),
        ({"steps": {"steps": [1, 4], "values": [1.0, 3.0]}}, False),
        ({"steps": {"steps": [1, 4], "values": [2.0, 2.0]}}, True),
        ({"steps": {"steps": [1, 4], "values": [1.0]}}, True),
        ({"b": [1.5]}, True),
        (proposed(2), False),
        (proposed(3), True),
        ({"proposed": {"tpe": []}}, True),
        ({"proposed": {}}, True),
    ],
)
def test_the_comparison_notices(change: dict[str, Any], on_another: bool) -> None:
    assert compare.differences(TREE, TREE, same_machine=True) == []
    assert compare.differences(TREE, TREE | change, same_machine=True)
    assert bool(compare.differences(TREE, TREE | change, same_machine=False)) is on_another


@pytest.mark.ray
def test_a_small_sweep_on_ray_ends_with_the_trials_and_the_winner_that_it_had(ray_home: Path) -> None:
    from tests.golden import machine, on_ray

    found = on_ray.swept(ray_home, "golden-tested")
    recorded = compare.read(RECORDED, ON_RAY)
    same = compare.read(RECORDED, "machine") == machine.fingerprint()
    lines = compare.differences(recorded, found, same_machine=same)
    said = "\n".join(lines[:SHOWN])
    assert not lines, f"{compare.made(same, RECORDED)}:\n{said}"
