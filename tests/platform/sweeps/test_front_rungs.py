"""Early stopping on the front: who goes on, and that a killed driver changes no decision."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergevq.errors import InputError
from mergevq_platform.sweeps import (
    EarlyStopping,
    FrontStopping,
    Grid,
    Sweep,
    Trunk,
    choice,
    loading,
    mean_log_frechet,
    mean_psnr,
)
from mergevq_platform.sweeps.front_rungs import DECISIONS, FrontRungs, read_decisions
from mergevq_platform.sweeps.front_scheduler import FrontScheduler
from mergevq_platform.sweeps.stopped import StoppedTrial, steps_saved, stopped_sentence
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.sweeps.tuning import _scheduler

SETTINGS = FrontStopping(every_steps=10, factor=2, min_trials=2)
ARRIVALS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from((10, 20, 40)), st.integers(0, 4), st.integers(0, 4)),
    max_size=18,
)


def losses(a: float, b: float) -> dict[str, float]:
    return {"distance": a, "error": b}


def goes_on(rungs: FrontRungs, trial: str, a: float, b: float, *, step: int = 10, of: str = "") -> bool:
    decision = rungs.decide(trial, of or trial, step, losses(a, b))
    assert decision is not None
    return decision.reason is None


def test_rungs_are_multiples_below_the_end() -> None:
    assert FrontStopping(every_steps=10).rungs(81) == (10, 20, 40, 80)
    assert FrontStopping(every_steps=10).rungs(80) == (10, 20, 40)
    assert FrontStopping(every_steps=10, factor=1.5).rungs(80) == (10, 20, 30, 50)
    with pytest.raises(InputError, match="every_steps is 80, but a trial has 80 steps"):
        FrontStopping(every_steps=80).rungs(80)


def test_trials_of_one_trunk_are_compared_by_the_steps_after_it() -> None:
    assert FrontStopping(every_steps=10).rungs(120, first=40) == (50, 60, 80)
    assert FrontStopping(every_steps=10).rungs(120, first=45) == (50, 60, 80)
    with pytest.raises(InputError, match="a trial has 80 steps, the first 70 of them its trunk's"):
        FrontStopping(every_steps=10).rungs(80, first=70)
    assert FrontRungs(SETTINGS, 80, first=40).decide("a", "a", 50, losses(1, 1)) is not None


@pytest.mark.parametrize("wrong", [{"factor": 1.0}, {"min_trials": 0}, {"every_steps": 0}])
def test_settings_that_cannot_work_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"stopping\.{next(iter(wrong))} is "):
        FrontStopping(**({"every_steps": 10} | wrong))


def test_the_front_and_the_better_half_of_those_that_came_so_far_go_on() -> None:
    rungs = FrontRungs(SETTINGS, 80)
    assert goes_on(rungs, "first", 5, 5)  # nobody to compare with
    assert not goes_on(rungs, "dominated", 6, 6)
    assert goes_on(rungs, "better in one", 9, 1)
    assert goes_on(rungs, "best", 1, 1)
    assert goes_on(rungs, "second of five", 2, 2)
    assert not goes_on(rungs, "worst", 9, 9)
    assert rungs.decide("best", "best", 15, losses(0, 0)) is None  # between rungs
    assert goes_on(rungs, "best", 9, 9, step=20)  # the first there


def test_of_equals_the_first_goes_on() -> None:
    rungs = FrontRungs(SETTINGS, 80)
    assert [goes_on(rungs, str(number), 1, 1) for number in range(5)] == [True, False, False, False, False]


def test_a_trial_that_is_not_finite_is_stopped_and_takes_nobodys_place() -> None:
    rungs = FrontRungs(SETTINGS, 80)
    decision = rungs.decide("broken", "broken", 10, losses(math.nan, 0.0))
    assert decision is not None
    assert decision.reason == "distance is no finite number"
    assert goes_on(rungs, "a", 1, 1)
    assert not goes_on(rungs, "b", 2, 2)  # one of the three that came goes on
    assert goes_on(rungs, "c", 2, 0)
    assert not goes_on(rungs, "overflown", -math.inf, 0)


def test_seeds_of_a_choice_are_judged_by_their_mean() -> None:
    rungs = FrontRungs(SETTINGS, 80)
    assert goes_on(rungs, "a0", 4, 4, of="a")
    assert goes_on(rungs, "b0", 3, 3, of="b")
    assert goes_on(rungs, "b1", 4, 4, of="b")  # alone it would tie with a; the mean of b is better
    assert not goes_on(rungs, "a1", 3.5, 3.5, of="a")  # better than b1, but not with its other seed
    assert goes_on(rungs, "b2", 0, 0, of="b")


@given(ARRIVALS)
def test_what_is_better_than_all_that_came_goes_on(arrivals: list[tuple[int, int, int, int]]) -> None:
    rungs = FrontRungs(SETTINGS, 80)
    for trial, step, a, b in arrivals:
        others = [made for made in rungs.decisions if made.step == step]
        known = {made.trial for made in rungs.decisions if made.step == step or made.reason}
        decision = rungs.decide(str(trial), str(trial), step, losses(a, b))
        assert decision is not None
        if str(trial) not in known and all(a < made.losses[0] and b < made.losses[1] for made in others):
            assert decision.reason is None


@given(ARRIVALS, st.integers(0, 17))
def test_a_killed_driver_decides_as_if_it_had_not_been(
    arrivals: list[tuple[int, int, int, int]], killed: int
) -> None:
    import tempfile

    whole = FrontRungs(SETTINGS, 80)
    for trial, step, a, b in arrivals:
        whole.decide(str(trial), str(trial), step, losses(a, b))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / DECISIONS
        rungs = FrontRungs(SETTINGS, 80, file)
        for number, (trial, step, a, b) in enumerate(arrivals):
            decision = rungs.decide(str(trial), str(trial), step, losses(a, b))
            if number == killed:  # before it could act: the trial comes again, and is told the same
                rungs = FrontRungs(SETTINGS, 80, file)
                assert rungs.decide(str(trial), str(trial), step, losses(a, b)) == decision
        assert rungs.decisions == whole.decisions
        assert not arrivals or read_decisions(file) == whole.decisions


def test_decisions_without_finite_losses_come_back_from_their_file(tmp_path: Path) -> None:
    rungs = FrontRungs(SETTINGS, 80, tmp_path / DECISIONS)
    rungs.decide("a", "a", 10, losses(math.inf, 1.0))
    (decision,) = read_decisions(tmp_path / DECISIONS)
    assert math.isnan(decision.losses[0])
    assert decision.reason == "distance is no finite number"


def test_a_decision_is_one_more_line_and_one_that_was_cut_off_is_none(tmp_path: Path) -> None:
    file = tmp_path / DECISIONS
    FrontRungs(SETTINGS, 80, file).decide("a", "a", 10, losses(1, 1))
    before = file.read_bytes()
    file.write_bytes(before + b'{"trial": "b", "choi')  # its driver was killed
    assert [made.trial for made in read_decisions(file)] == ["a"]
    rungs = FrontRungs(SETTINGS, 80, file)
    assert not goes_on(rungs, "b", 2, 2)
    assert file.read_bytes().startswith(before)
    assert read_decisions(file) == rungs.decisions
    assert [made.trial for made in rungs.decisions] == ["a", "b"]


def test_decisions_of_an_earlier_version_count_and_stay(tmp_path: Path) -> None:
    former = tmp_path / "rungs.json"
    text = json.dumps(
        [{"trial": "a", "choice": "a", "step": 10, "losses": [1.0, None], "reason": "distance"}]
    )
    former.write_text(text)
    for file in (tmp_path / DECISIONS, former):  # as a scheduler that an earlier version pickled has it
        rungs = FrontRungs(SETTINGS, 80, file)
        decision = rungs.decide("a", "a", 20, losses(1, 1))
        assert decision is not None
        assert decision.reason == "distance"
    assert goes_on(rungs, "b", 2, 2)
    assert [made.trial for made in read_decisions(tmp_path / DECISIONS)] == ["a", "b"]
    assert former.read_text() == text


def sweep(stopping: FrontStopping | EarlyStopping, **changes: Any) -> Sweep:
    given: dict[str, Any] = {
        "name": "s",
        "question": "?",
        "recipe": "demo",
        "space": {"optimizer.learning_rate": choice(1e-3, 1e-4)},
        "search": Grid(seeds=2),
        "objectives": (mean_psnr(), mean_log_frechet()),
        "stopping": stopping,
    }
    return Sweep(**(given | changes))


def reported(scheduler: Any, number: int, step: int, psnr: float, distance: float) -> str:
    """The answer to a report of trial `number`, two seeds a choice."""
    params = {"optimizer.learning_rate": str(number // 2)}
    config = {"trial": {"number": number, "params": params, "seed": number % 2}}

    class Trial(SimpleNamespace):
        def __str__(self) -> str:
            return f"s-{number:03d}"

    trial = Trial(config=config, trial_id=str(number))
    result = {"step": step, "mean_psnr": psnr, "mean_log_frechet": distance}
    return str(scheduler.on_trial_result(None, trial, result))


def test_tunes_scheduler_respects_directions_and_survives_its_pickle(tmp_path: Path) -> None:
    settings = SweepSettings("s", str(tmp_path), None, None, "u", "cpu")
    definition = sweep(FrontStopping(every_steps=100, min_trials=2))
    base = SimpleNamespace(steps=600)

    def opened() -> Any:
        return _scheduler(definition, settings, base)  # type: ignore[arg-type]

    scheduler = opened()
    assert isinstance(scheduler, FrontScheduler)
    assert reported(scheduler, 0, 100, 20.0, 1.0) == "CONTINUE"
    assert reported(scheduler, 2, 100, 25.0, 0.5) == "CONTINUE"  # more dB and less distance is better
    assert reported(scheduler, 4, 100, 15.0, 2.0) == "STOP"
    assert reported(scheduler, 1, 100, 9.0, 3.5) == "STOP"  # with seed 0 of its choice
    again = opened()  # as a driver that was killed begins anew
    assert reported(again, 4, 200, 99.0, 0.0) == "STOP"
    assert reported(again, 0, 100, 0.0, 9.0) == "CONTINUE"


def test_the_scheduler_that_tune_pickles_reads_what_was_decided_since(tmp_path: Path) -> None:
    stopping = FrontStopping(every_steps=100, min_trials=1)
    scheduler = FrontScheduler(stopping, 600, tmp_path / DECISIONS, (), str)
    stored = pickle.dumps(scheduler)
    FrontRungs(stopping, 600, tmp_path / DECISIONS).decide("a", "a", 100, losses(math.nan, 1))
    rungs = pickle.loads(stored)._rungs
    assert [decision.trial for decision in rungs.decisions] == ["a"]


def test_early_stopping_on_the_first_objective_asks_ray_for_asha(tmp_path: Path) -> None:
    settings = SweepSettings("s", str(tmp_path), None, None, "u", "cpu")
    base: Any = SimpleNamespace(steps=600)
    scheduler = _scheduler(sweep(EarlyStopping(every_steps=100)), settings, base)
    assert scheduler is not None
    for number in (0, 2, 4):
        scheduler.on_trial_add(None, SimpleNamespace(trial_id=str(number)))  # type: ignore[arg-type]
    assert reported(scheduler, 0, 100, 20.0, 1.0) == "CONTINUE"
    assert reported(scheduler, 2, 100, 10.0, 0.1) == "STOP"  # better in the second alone
    assert reported(scheduler, 4, 100, 30.0, 9.0) == "CONTINUE"


@pytest.mark.parametrize(
    ("stopping", "overrides", "message"),
    [
        (FrontStopping(every_steps=600), (), "every_steps is 600, but a trial has 600 steps"),
        (FrontStopping(every_steps=100), ("steps=null", "epochs=1"), "give the recipe 'steps'"),
        (EarlyStopping(every_steps=100), ("steps=null", "epochs=1"), "give the recipe 'steps'"),
    ],
)
def test_a_sweep_that_could_compare_nothing_is_refused(
    stopping: FrontStopping | EarlyStopping, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sweep(stopping, overrides=overrides).check()


@pytest.mark.parametrize("fork", [Trunk(fraction=0.9), Trunk(steps=540), "run@540"])
def test_a_forked_sweep_whose_rungs_all_lie_in_its_trunk_is_refused(fork: Trunk | str) -> None:
    forked = replace(sweep(FrontStopping(every_steps=100)), fork=fork, search=Grid())
    assert forked.shared_steps(600) == 540
    with pytest.raises(InputError, match="the first 540 of them its trunk's"):
        forked.check()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("front", FrontStopping(every_steps=150)),
        ("front:40", FrontStopping(every_steps=40)),
        ("first", EarlyStopping(every_steps=150)),
        ("none", None),
    ],
)
def test_the_command_line_names_a_kind_of_stopping(kind: str, expected: object) -> None:
    dimensions = ["optimizer.learning_rate=1e-4,1e-3"]
    assert loading.opened("demo", dimensions, stopping=kind).stopping == expected
    assert loading.opened("demo", dimensions).stopping is None


@pytest.mark.parametrize("text", ["back", "front:0", "front:x", "first:-1"])
def test_another_kind_of_stopping_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=rf"--stopping {text}: write front, first, none"):
        loading.opened("demo", ["optimizer.learning_rate=1e-4,1e-3"], stopping=text)


def test_a_files_rungs_are_kept_when_the_kind_of_stopping_changes() -> None:
    changed = loading.opened("sweeps/smoke.py", stopping="front").stopping
    assert changed == FrontStopping(every_steps=40)


def test_a_report_says_what_was_stopped_and_what_that_saved() -> None:
    stopped = [
        StoppedTrial("s-001", {"k": 1}, 100, 400, "others"),
        StoppedTrial("s-002", {"k": 2}, 200, 400, "x"),
    ]
    finished: Any = [SimpleNamespace(steps=400), SimpleNamespace(steps=400)]
    assert steps_saved(stopped, finished) == 500 / 1600
    assert stopped_sentence(stopped, finished) == (
        "2 of 4 trials were stopped early, which saved 31% of the optimizer steps"
    )
    assert steps_saved([], []) == 0
