"""Fairness of forking: the rank correlation is the known one, its interval covers, and the verdict follows from both."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from scipy.stats import spearmanr

from mergevq.errors import InputError
from mergevq_platform.sweeps import Grid, Sweep, choice, mean_log_frechet, mean_psnr
from mergevq_platform.sweeps.fairness import agreement, between, spearman
from mergevq_platform.sweeps.finished import Finished
from mergevq_platform.sweeps.savings import TRUNK_COST
from mergevq_platform.sweeps.stored import DEFINITION_FILE, SETTINGS_FILE

KEY = "task.losses.entropy.weight"


def trials(
    values: list[float], *, fork: int = 0, home: Path = Path("home"), steps: int = 8
) -> list[Finished]:
    """A trial for every value of mean PSNR; forked after so many steps."""
    recipe: dict[str, Any] = {"name": "r"}
    if fork:
        recipe["fork"] = {"run": str(home / "ray/t/checkpoint_000000004"), "step": fork, "sha256": "a" * 64}
    return [
        Finished(
            f"s-{i:03d}",
            {KEY: str(i)},
            0,
            steps,
            {"mean_psnr": value},
            {},
            {},
            1.0,
            recipe,
            float(steps - fork),
        )
        for i, value in enumerate(values)
    ]


def stored(home: Path, name: str, finished: list[Finished]) -> None:
    definition = Sweep(
        name=name,
        question="?",
        recipe="demo",
        space={KEY: choice(*range(len(finished)))},
        search=Grid(),
        objectives=(mean_psnr(),),
    )
    folder = home / "ray" / name
    folder.mkdir(parents=True)
    (folder / DEFINITION_FILE).write_bytes(cloudpickle.dumps(definition))
    (folder / SETTINGS_FILE).write_text("{}")
    for trial in finished:
        own = home / "ray" / trial.name.replace("s-", f"{name}-")
        own.mkdir()
        (own / "finished.json").write_text(json.dumps(asdict(replace(trial, curve={"rows": []}))))


def test_the_rank_correlation_is_scipys_ties_included() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = rng.integers(0, 6, 9).tolist(), rng.integers(0, 6, 9).tolist()
        assert spearman(one, other)[0] == pytest.approx(spearmanr(one, other).statistic)


def test_the_interval_covers_the_true_correlation() -> None:
    rng = np.random.default_rng(1)
    true, inside, repetitions = 0.7, 0, 400
    rank = 6 / math.pi * math.asin(true / 2)  # Spearman's of a normal pair with this correlation
    for _ in range(repetitions):
        x = rng.standard_normal(30)
        y = true * x + math.sqrt(1 - true**2) * rng.standard_normal(30)
        _, low, high = spearman(x.tolist(), y.tolist())
        inside += low <= rank <= high
    assert 0.91 < inside / repetitions < 0.99


def test_a_perfect_order_of_few_trials_is_not_certain() -> None:
    correlation, low, high = spearman([1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 6, 7, 9])
    assert (correlation, high) == (pytest.approx(1.0), pytest.approx(1.0))
    assert 0.7 < low < 0.95
    assert math.isnan(spearman([1, 1, 1, 1, 1], [1, 2, 3, 4, 5])[0])


def test_the_verdict_is_fair_unfair_or_undecided() -> None:
    whole = trials([1, 2, 3, 4, 5, 6, 7, 8])
    for values, verdict in (
        ([2, 1, 3, 4, 5, 6, 7, 8], "fair"),
        ([8, 7, 6, 5, 4, 3, 2, 1], "not fair"),
        ([3, 4, 1, 2, 7, 8, 5, 6], "undecided"),
    ):
        found = agreement(mean_psnr(), trials([float(v) for v in values], fork=4), whole)
        assert found is not None
        assert found.verdict == verdict
    assert found.winner_rank == 3, "the forked winner is the sixth trial, which two whole trainings beat"
    assert agreement(mean_psnr(), whole[:4], whole[:4]) is None
    assert agreement(mean_log_frechet(), whole, whole) is None


def test_sweeps_of_the_same_choices_are_judged_with_their_cost(tmp_path: Path) -> None:
    values = [float(v) for v in (1, 2, 3, 4, 5, 6, 7, 8)]
    stored(tmp_path, "whole", trials(values))
    stored(tmp_path, "forked", trials(values, fork=4, home=tmp_path))
    (tmp_path / "ray/t").mkdir()
    (tmp_path / "ray/t" / TRUNK_COST).write_text(json.dumps({"steps": 4, "cpu_seconds": 8.0}))
    (found,) = between(["whole", "forked"], tmp_path)
    assert found.steps_share == pytest.approx((4 + 8 * 4) / (8 * 8))
    assert found.cpu_share == pytest.approx((8 + 8 * 4) / (8 * 8))
    assert found.keys == (KEY,)
    assert "| mean_psnr | 8 | 1.00 (" in found.markdown()
    assert "56% of the steps, 62% of the CPU seconds of training" in found.markdown()
    assert between(["whole"], tmp_path) == between(["curve.json", "forked"], tmp_path) == []


def test_trainings_of_other_lengths_tell_nothing_of_a_fork(tmp_path: Path) -> None:
    stored(tmp_path, "whole", trials([1, 2, 3, 4, 5], steps=9))
    stored(tmp_path, "forked", trials([1, 2, 3, 4, 5], fork=4))
    with pytest.raises(InputError, match="'forked' and 'whole' were trained to different steps"):
        between(["forked", "whole"], tmp_path)
