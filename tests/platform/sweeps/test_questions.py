"""The questions that a sweep leaves: each only where its numbers say so, and each command is one that this command line takes."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mergevq.config import to_tree
from mergevq_platform.cli import parse
from mergevq_platform.sweeps import (
    Grid,
    Random,
    Sweep,
    choice,
    loading,
    log_uniform,
    mean_psnr,
    report,
    uniform,
)
from mergevq_platform.sweeps.cost import cost_of
from mergevq_platform.sweeps.explained import Explained, explained
from mergevq_platform.sweeps.finished import Finished
from mergevq_platform.sweeps.importance import intervals
from mergevq_platform.sweeps.questions import Asker, Question
from mergevq_platform.sweeps.ranges import at_border, over, widened
from mergevq_platform.sweeps.space import Choice, Integer, RealRange, keys_of
from recorded_trials import finished

RATE, WEIGHT = "optimizer.learning_rate", "task.losses.entropy.weight"


def sweep(**changes: Any) -> Sweep:
    given: dict[str, Any] = {
        "name": "s",
        "question": "?",
        "recipe": "demo",
        "space": {RATE: log_uniform(1e-5, 1e-2), WEIGHT: uniform(0.01, 0.1)},
        "search": Random(trials=40),
        "objectives": (mean_psnr(),),
    }
    return Sweep(**given | changes)


def trials(made: Sweep, score: Any) -> list[Finished]:
    """Every listed trial, with the objective that `score` gives (choice, seed)."""
    return [
        finished(f"s-{i:03d}", params, {4: (2.0, 10.0)}, psnr=score(params, seed), seed=seed)
        for i, (params, seed) in enumerate(made.listed() or ())
    ]


SURE = Explained(0.9, (0.5, 0.95))


def asked(
    made: Sweep, done: list[Finished], known: dict[str, Explained], recipe: str = "winner.yaml"
) -> list[Question]:
    winner = report.best(made, done)
    assert winner is not None
    return Asker(made, done, winner, known, recipe).questions()


def test_the_winner_inside_of_its_range_asks_for_a_closer_look_that_holds_it() -> None:
    made = sweep()
    done = trials(made, lambda params, _: -((math.log10(params[RATE]) + 3.5) ** 2))
    (question,) = asked(made, done, explained(made, done)["mean_psnr"])
    assert question.sentence.startswith(f"Vary {RATE} next: it explains ")
    assert question.command is not None
    assert question.command.startswith("mergevq sweep winner.yaml --over optimizer.learning_rate=")
    domain = loading.parse_domain(shlex.split(question.command)[-1])[1]
    assert isinstance(domain, RealRange)
    assert domain.log
    assert 1e-5 < domain.low < 10**-3.5 < domain.high < 1e-2


def test_the_winner_at_the_border_asks_for_a_wider_range() -> None:
    made = sweep()
    done = trials(made, lambda params, _: math.log10(params[RATE]))
    wider = asked(made, done, {RATE: SURE})[0]
    assert wider.sentence.startswith(f"Widen {RATE}: the winner's")
    assert wider.sentence.endswith("lies at the upper border of 1e-05 to 0.01")
    assert wider.command is not None
    domain = loading.parse_domain(shlex.split(wider.command)[-1])[1]
    assert isinstance(domain, RealRange)
    assert domain.low < 1e-2 < domain.high


def test_beyond_what_the_recipe_takes_nothing_is_proposed() -> None:
    made = sweep(space={"ema_decay": uniform(0.5, 0.9), RATE: log_uniform(1e-5, 1e-2)})
    done = trials(made, lambda params, _: params["ema_decay"])
    question = asked(made, done, {"ema_decay": SURE})[0]
    assert question.sentence.endswith("and the recipe takes nothing beyond it")
    assert question.command is None


def test_noise_asks_for_nothing_but_more_trials() -> None:
    made, rng = sweep(), np.random.default_rng(3)
    done = trials(made, lambda *_: float(rng.normal()))
    (question,) = asked(made, done, explained(made, done)["mean_psnr"])
    assert question.sentence.startswith("No parameter can be told apart from none by 40 choices")


@pytest.mark.parametrize(("noise", "needed"), [(1.0, True), (0.01, False)])
def test_more_seeds_are_asked_for_where_trials_of_one_choice_differ_more_than_choices(
    noise: float, needed: bool
) -> None:
    made = sweep(space={"steps": choice(2, 4, 8)}, search=Grid(seeds=3))
    rng = np.random.default_rng(0)
    done = trials(made, lambda params, _: float(params["steps"]) / 8 + noise * float(rng.normal()))
    seeds = [question for question in asked(made, done, {}) if question.sentence.startswith("More seeds")]
    assert bool(seeds) == needed
    if needed:
        assert seeds[0].command is not None
        assert "--over steps=" in seeds[0].command
        assert int(seeds[0].command.split()[-1]) >= 6


def test_a_proposed_command_is_parsed_and_makes_a_sweep(tmp_path: Path) -> None:
    made = sweep()
    done = trials(made, lambda params, _: -((math.log10(params[RATE]) + 3.5) ** 2))
    winner = report.best(made, done)
    assert winner is not None
    path = tmp_path / "winner.yaml"
    complete = to_tree(made.recipe_of(winner.params))
    path.write_text(yaml.safe_dump(complete))
    (question,) = asked(made, done, {RATE: SURE}, str(path))
    assert question.command is not None
    options = parse(shlex.split(question.command)[1:])
    proposed = loading.opened(options.sweep, options.over, recipe=options.recipe, trials=options.trials)
    assert set(proposed.space) == {RATE}
    held = proposed.base()["task"]["losses"]["entropy"]["weight"]
    assert held == winner.params[WEIGHT], "the winner's other choices stay"


def test_a_conditional_parameter_is_named_by_its_recipe_key() -> None:
    space = {"task.keep": choice({"kind": "gaussian", "sigma": uniform(0.1, 1.0)}, {"kind": "uniform"})}
    params = {"task.keep": "gaussian", "task.keep.gaussian.sigma": 0.3}
    assert keys_of(space, params) == {"task.keep": "task.keep", "task.keep.gaussian.sigma": "task.keep.sigma"}
    assert keys_of(space, {"task.keep": "uniform"}) == {"task.keep": "task.keep"}


@pytest.mark.parametrize(
    ("domain", "value", "border", "wider"),
    [
        (RealRange(1e-4, 1e-2, log=True), 1.1e-4, "lower", RealRange(1e-5, 1e-3, log=True)),
        (RealRange(1e-4, 1e-2, log=True), 1e-3, None, None),
        (RealRange(0.0, 1.0), 0.95, "upper", RealRange(0.5, 1.5)),
        (RealRange(0.0, 1.0), 0.05, "lower", None),
        (Integer(1, 9), 9, "upper", Integer(5, 13)),
        (Integer(0, 4), 0, "lower", None),
    ],
)
def test_ranges_widen_around_the_border_in_their_own_scale(
    domain: RealRange | Integer, value: float, border: Any, wider: RealRange | Integer | None
) -> None:
    assert at_border(domain, value) == border
    if border is not None:
        assert widened(domain, border) == wider


def test_what_is_written_for_a_command_line_is_read_back() -> None:
    for domain in (RealRange(1e-5, 1e-3, log=True), RealRange(0.5, 2.0), Integer(2, 9)):
        text = over("a.b", domain, domain)
        assert text is not None
        assert loading.parse_domain(text) == ("a.b", domain)
    options = Choice(
        ({"kind": "uniform", "merge_ratio": [0.0, 0.75]}, {"kind": "list", "counts": [4, 9]}, "x")
    )
    text = over("a.b", options, ["uniform", "x"])
    assert text is not None
    assert loading.parse_domain(text)[1] == Choice((options.options[0], "x"))
    assert over("a", Choice(({"kind": "g", "s": RealRange(0, 1)}, 1)), ["g"]) is None


def test_an_interval_holds_zero_for_noise_and_not_for_what_matters_whatever_the_seed() -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        drawn = {name: [float(value) for value in rng.uniform(size=40)] for name in ("matters", "noise")}
        values = [
            value + float(e) for value, e in zip(drawn["matters"], rng.normal(0, 0.15, 40), strict=True)
        ]
        found = intervals(drawn, values, range(40))
        assert found["matters"][0] > 0
        assert found["noise"][0] < 0 < found["noise"][1]


def test_a_repetition_is_no_evidence_of_its_own() -> None:
    rng = np.random.default_rng(0)
    drawn = [float(value) for value in rng.uniform(size=10)]
    values = [float(value) for value in rng.normal(size=10)]
    once = intervals({"x": drawn, "y": values[::-1]}, values, range(10))
    repeated = intervals({"x": drawn * 4, "y": values[::-1] * 4}, values * 4, [*range(10)] * 4)
    assert repeated["x"][0] < 0, "forty trials of ten choices say no more than ten"
    assert once["x"][0] < 0


def test_hours_count_every_trial_and_the_time_around_them_those_that_ran_here() -> None:
    done = [finished(f"s-{i}", {"steps": "1"}, {4: (1.0, 1.0)}) for i in range(2)]  # 60 s each
    spent = {
        "s-0": 61.0,
        "s-1": 0.1,
        "s-2": 30.0,
    }  # the second was read again after a kill, the third stopped early
    cost = cost_of(spent, done, workers=1, gpus_per_trial=0.5, device="cuda")
    assert cost.device_hours == pytest.approx((61 + 60 + 30) * 0.5 / 3600)
    assert cost.around_seconds == pytest.approx(1.0)
    assert "GPU hours in 3 trials" in cost.sentence()
    group = cost_of(spent, done, workers=4, gpus_per_trial=0.5, device="cpu")
    assert group.device_hours == pytest.approx((61 + 60 + 30) * 4 / 3600)
