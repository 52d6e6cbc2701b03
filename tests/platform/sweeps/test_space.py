"""Search spaces: walking them, their corners, draws that are functions of (seed, number), small changes."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from mergevq.errors import InputError
from mergevq_platform.sweeps import choice, choosers, integer, log_uniform, uniform
from mergevq_platform.sweeps import space as spaces
from mergevq_platform.sweeps.plain_values import plain

SPACE: dict[str, Any] = {
    "task.keep": choice(
        {"kind": "gaussian", "sigma": uniform(0.5, 2.0)},
        {"kind": "uniform", "merge_ratio": [0.0, 0.75]},
        {"kind": "list", "merge_ratios": choice([0.0], [0.5, 0.75])},
    ),
    "steps": integer(5, 9),
    "optimizer.learning_rate": log_uniform(1e-4, 1e-2),
}


class Colour(Enum):
    RED = "red"


def resolved(params: dict[str, Any]) -> dict[str, Any]:
    return spaces.values_of(SPACE, params)


def test_a_draw_is_a_function_of_seed_and_number_and_stays_in_range() -> None:
    seen = set()
    for number in range(60):
        params = choosers.draw(SPACE, seed=3, number=number)
        assert params == choosers.draw(SPACE, seed=3, number=number)
        values = resolved(params)
        seen.add(values["task.keep"]["kind"])
        assert 5 <= values["steps"] <= 9
        assert 1e-4 <= values["optimizer.learning_rate"] <= 1e-2
        # What belongs to another family is not drawn.
        assert ("task.keep.gaussian.sigma" in params) == (values["task.keep"]["kind"] == "gaussian")
    assert seen == {"gaussian", "uniform", "list"}
    assert choosers.draw(SPACE, seed=4, number=0) != choosers.draw(SPACE, seed=3, number=0)


def test_a_grid_is_every_combination_once_with_conditional_parts() -> None:
    space = {
        "a": choice({"kind": "x", "n": choice(1, 2)}, {"kind": "y"}),
        "b": integer(0, 1),
    }
    found = [spaces.values_of(space, params) for params in choosers.grid(space)]
    wanted = [
        {"a": a, "b": b}
        for a in ({"kind": "x", "n": 1}, {"kind": "x", "n": 2}, {"kind": "y"})
        for b in (0, 1)
    ]
    assert sorted(map(str, found)) == sorted(map(str, wanted))


def test_a_grid_over_a_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"a grid needs choices, but 'optimizer\.learning_rate' is a range"):
        choosers.grid({"optimizer.learning_rate": uniform(0.0, 1.0)})


def test_corners_touch_every_option_and_both_ends() -> None:
    corners = [resolved(params) for params in choosers.corners(SPACE)]
    assert {corner["task.keep"]["kind"] for corner in corners} == {"gaussian", "uniform", "list"}
    assert {0.5, 2.0} <= {corner["task.keep"].get("sigma") for corner in corners}
    assert {5, 9} <= {corner["steps"] for corner in corners}
    assert {1e-4, 1e-2} <= {corner["optimizer.learning_rate"] for corner in corners}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "the search space is empty"),
        ({"a": choice()}, "the choice for 'a' is empty"),
        ({"a": uniform(1.0, 1.0)}, "the range of 'a' is 1.0 to 1.0: it must rise"),
        ({"a": log_uniform(0.0, 1.0)}, "logarithmic but begins at 0.0"),
        ({"a": integer(3, 2)}, "the range of 'a' is 3 to 2"),
        ({"a": choice({"kind": "x", "n": integer(2, 1)})}, "the range of 'a.n' is 2 to 1"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        spaces.check(space)


def test_a_perturbation_is_near_or_drawn_anew_and_never_leaves_the_range() -> None:
    old = choosers.draw(SPACE, seed=0, number=1)
    moved = [choosers.perturbed(SPACE, old, seed=seed) for seed in range(40)]
    assert any(params != old for params in moved)
    for params in moved:
        values = resolved(params)  # every value that the chosen family needs is there
        assert 1e-4 <= values["optimizer.learning_rate"] <= 1e-2
    near = [p["optimizer.learning_rate"] / old["optimizer.learning_rate"] for p in moved]
    assert any(ratio == pytest.approx(0.8) for ratio in near)
    assert any(ratio == pytest.approx(1.2) for ratio in near)


def test_optuna_walks_the_same_space() -> None:
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    for _ in range(12):
        trial = study.ask()
        values, _ = spaces.walked(SPACE, spaces.suggested(trial))
        assert resolved(trial.params) == values
        study.tell(trial, values["optimizer.learning_rate"])


def test_values_are_laid_over_a_tree_and_a_variant_replaces_the_other() -> None:
    tree = {"task": {"keep": {"kind": "gaussian", "sigma": 1.0}, "losses": {"weight": 1.0}}, "steps": 3}
    placed = spaces.laid_over(tree, {"task.keep": {"kind": "uniform"}, "task.losses.weight": 2.0})
    assert placed == {"task": {"keep": {"kind": "uniform"}, "losses": {"weight": 2.0}}, "steps": 3}
    assert tree["task"]["keep"]["kind"] == "gaussian"  # type: ignore[index]


def test_labels_are_short_and_different() -> None:
    assert spaces.labels(choice({"kind": "a"}, {"kind": "b"}, [0.5])) == ["a", "b", "[0.5]"]
    assert len(set(spaces.labels(choice({"kind": "a", "n": 1}, {"kind": "a", "n": 2})))) == 2
    assert spaces.labels(choice(1, "1", "1")) == ["1", "1 (1)", "1 (2)"]
    thousands = choice(*range(2000))
    assert spaces.labels(thousands) is spaces.labels(thousands)  # every walk asks for them


def test_numpys_numbers_are_taken_as_numbers() -> None:
    space = {
        "global_batch": choice(*np.arange(32, 97, 32)),
        "optimizer.learning_rate": choice(*np.array([1e-4, 1e-3], np.float32)),
        "task.keep.counts": choice([np.int64(9), np.int64(16)], np.array([25, 36]), (np.int8(4),)),
        "steps": integer(np.int64(16), np.uint8(64)),
        "ema_decay": uniform(np.float32(0.5), np.array(0.75)),
        "compile": choice(np.bool_(True), False, None),
        "task.keep": choice(
            {"kind": np.str_("list"), "counts": [np.int64(9)]}, {"kind": "gaussian", "sigma": np.float64(2)}
        ),
        "data.path": choice(Path("shapes"), Colour.RED),
    }
    taken = plain(space, "")
    assert json.loads(json.dumps(spaces.encoded(taken))) == spaces.encoded(taken)
    assert taken["global_batch"] == choice(32, 64, 96)
    assert [type(option) for option in taken["global_batch"].options] == [int] * 3
    assert taken["optimizer.learning_rate"].options == (np.float32(1e-4).item(), np.float32(1e-3).item())
    assert taken["task.keep.counts"] == choice([9, 16], [25, 36], [4])
    assert taken["steps"] == integer(16, 64)
    assert taken["ema_decay"] == uniform(0.5, 0.75)
    assert taken["compile"].options == (True, False, None)
    assert taken["task.keep"].options[1] == {"kind": "gaussian", "sigma": 2.0}
    assert taken["data.path"] == choice("shapes", "red")
    spaces.check(taken)


@pytest.mark.parametrize(
    ("key", "domain", "message"),
    [
        ("a.b", choice(1, {2, 3}), r"'a\.b' holds \{2, 3\} of type set"),
        ("a.b", choice(1 + 2j), "of type complex"),
        ("a.b", choice(np.datetime64("2026-01-01")), "of type date"),
        ("a.b", choice({"kind": "list", "counts": [object()]}), r"'a\.b\.counts' holds"),
        ("a.b", uniform("0", 1.0), "one end: give a number"),  # type: ignore[arg-type]
        ("a.b", uniform(True, 3.0), "one end: give a number"),
        ("a.b", integer(0.5, 3), "one end: give a whole number"),  # type: ignore[arg-type]
    ],
)
def test_what_no_recipe_can_hold_is_refused_by_key(key: str, domain: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plain({key: domain}, "")
