"""Importances against shares of the variance that can be written down."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mergevq_platform.sweeps import (
    Population,
    Random,
    Sweep,
    choice,
    explained,
    integer,
    log_uniform,
    mean_psnr,
    uniform,
)
from mergevq_platform.sweeps.importance import main_effects

DECADES = choice(1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def shares(
    key: Any, draw: Callable[[np.random.Generator], Any], effect: Callable[[Any], float]
) -> list[float]:
    """The share of `key` beside an even `x` in [0, 1] that adds itself, by 64 trials of five seeds."""
    found = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        sweep = Sweep(
            name="s",
            question="?",
            recipe="demo",
            search=Random(trials=64),
            objectives=(mean_psnr(),),
            space={"key": key, "x": uniform(0.0, 1.0)},
        )
        points = [(draw(rng), float(rng.uniform())) for _ in range(64)]
        done: Any = [
            SimpleNamespace(params={"key": value, "x": x}, objectives={"mean_psnr": effect(value) + x})
            for value, x in points
        ]
        found.append(explained.importance(sweep, done)["mean_psnr"]["key"])
    return found


@pytest.mark.parametrize(
    ("key", "draw", "effect", "variance"),
    [
        (log_uniform(1e-5, 1e-1), lambda rng: float(10 ** rng.uniform(-5, -1)), math.log10, 16 / 12),
        (log_uniform(1e-4, 1e-2), lambda rng: float(10 ** rng.uniform(-4, -2)), math.log10, 4 / 12),
        (uniform(0.0, 2.0), lambda rng: float(rng.uniform(0, 2)), lambda value: value, 4 / 12),
        (
            DECADES,
            lambda rng: str(rng.choice([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])),
            lambda v: math.log10(float(v)),
            2,
        ),
        (integer(1, 10), lambda rng: int(rng.integers(1, 11)), lambda value: value / 10, 99 / 1200),
    ],
)
def test_a_share_is_that_of_the_variance(
    key: Any, draw: Callable[..., Any], effect: Callable[..., float], variance: float
) -> None:
    exact = variance / (variance + 1 / 12)
    found = shares(key, draw, effect)
    assert np.mean(found) == pytest.approx(exact, abs=0.03)
    assert max(abs(share - exact) for share in found) < 0.06


def test_options_count_by_what_they_do_whatever_they_are_called() -> None:
    rng = np.random.default_rng(0)
    given = [str(rng.choice(["a", "b", "c"])) for _ in range(60)]
    noise = [float(rng.uniform()) for _ in given]
    found = main_effects({"noise": noise, "given": given}, [{"a": 0.0, "b": 3.0, "c": 1.0}[g] for g in given])
    assert list(found) == ["given", "noise"]
    assert found["given"] > 0.97


def test_shares_add_up_to_one_and_leave_out_what_never_varied() -> None:
    rng = np.random.default_rng(1)
    drawn = {name: [float(value) for value in rng.uniform(size=20)] for name in "ab"}
    found = main_effects({**drawn, "c": [1.0] * 20}, [a * b for a, b in zip(*drawn.values(), strict=True)])
    assert set(found) == {"a", "b"}
    assert sum(found.values()) == pytest.approx(1)
    assert main_effects(drawn, [2.0] * 20) == {}
    assert main_effects({"c": [1.0] * 20}, drawn["a"]) == {}


def test_a_population_and_few_trials_have_no_importances() -> None:
    trial: Any = SimpleNamespace(params={"x": 1.0}, objectives={"mean_psnr": 1.0})
    sweep = Sweep(
        name="s", question="?", recipe="demo", space={"x": uniform(0.0, 1.0)}, search=Random(trials=3),
        objectives=(mean_psnr(),),
    )  # fmt: skip
    assert explained.importance(sweep, [trial] * 3) == {}
    changing = Population(size=4, every_steps=5)
    assert explained.importance(Sweep(**{**vars(sweep), "search": changing}), [trial] * 4) == {}
