"""Sweeps that stop on the front whose driver is ended by SIGKILL: they decide, stop and end as if it had not been."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import killed_driver
from mergevq_platform import loop
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.recipe import resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps import driver, loading
from mergevq_platform.sweeps.finished import RECORD, STOPPED
from mergevq_platform.sweeps.front_rungs import DECISIONS, FrontRungs, RungDecision, read_decisions
from mergevq_platform.sweeps.outcome import SweepOutcome
from mergevq_platform.sweeps.stopping import FrontStopping
from raynodes import same, state, step_of
from sweep_ends import SweepEnd, end_of, question_file, require_delivered_once

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.usefixtures("one_thread")]

STEPS = 8
STOPPING = FrontStopping(every_steps=2, min_trials=2)
QUESTION = f"""
from mergevq_platform.sweeps import *
SWEEP = Sweep(
    name="front", question="?", recipe={{recipe!r}}, search=Grid(), stopping={STOPPING!r},
    space={{{{"optimizer.learning_rate": choice(1e-3, 1e-8, 1e-9, 1e-10)}}}},
    objectives=(mean_psnr(), mean_log_frechet()), rung=Rung(keeps=(4,), images=32, probe_images=32),
)
"""
DRIVER = """
import sys
from pathlib import Path
from mergevq_platform.sweeps import driver, loading
driver.sweep(loading.load(sys.argv[2]), home=Path(sys.argv[1]), name="front", concurrent={concurrent})
"""
HELD = """
import time
from mergevq_platform.sweeps.front_rungs import FrontRungs
decide = FrontRungs.decide
def held(self, *arguments):
    decision = decide(self, *arguments)
    while decision is not None and decision.reason:
        time.sleep(1)  # the decision is written; until it is killed, nothing acts on it
    return decision
FrontRungs.decide = held
"""


@dataclass
class FrontSweep:
    """A sweep of four trials, of which some are stopped, in homes of its own."""

    folder: Path
    file: Path
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        """The home of the sweep that is killed."""
        return self.folder / "killed"

    def decisions(self) -> list[RungDecision]:
        """What its driver has decided so far."""
        return read_decisions(self.home / "ray" / "front" / DECISIONS)

    def step(self, number: int) -> int:
        """The last step that a trial has recorded."""
        return step_of(self.trial(number))

    def trial(self, number: int) -> Run:
        """The run of a trial."""
        return Run(f"front-{number:03d}", self.home, str(self.home / "ray"))

    def kill(self, when: Callable[[], bool], *, held: bool = False, concurrent: int = 1) -> None:
        """Begin the sweep, and kill its driver."""
        script = (HELD if held else "") + DRIVER.format(concurrent=concurrent)
        killed_driver.killed(script, self.home, self.file, environment=self.environment, when=when)

    def resume(self) -> SweepOutcome:
        """Go on with it in this process, to the end."""
        return driver.sweep(None, home=self.home, resume="front", concurrent=1)


@pytest.fixture
def front(small_recipe: dict[str, Any], tmp_path: Path, joining: dict[str, str]) -> FrontSweep:
    return FrontSweep(tmp_path, question_file(small_recipe, tmp_path, QUESTION, steps=STEPS), joining)


@pytest.fixture(scope="module")
def ends() -> dict[str, SweepEnd]:
    """What tests share: how the sweep ends that nothing disturbs."""
    return {}


@pytest.fixture
def undisturbed_end(front: FrontSweep, ends: dict[str, SweepEnd]) -> SweepEnd:
    """How the sweep ends, one trial after the other, run for the first test that asks."""
    if "front" not in ends:
        home = front.folder / "undisturbed"
        outcome = driver.sweep(loading.load(str(front.file)), home=home, name="front", concurrent=1)
        ends["front"] = end_of(outcome, home)
        assert ends["front"].stopped
        assert ends["front"].records
    return ends["front"]


def test_a_driver_killed_between_rungs_changes_no_decision_and_no_weight(
    front: FrontSweep, undisturbed_end: SweepEnd
) -> None:
    front.kill(lambda: front.step(0) > STOPPING.every_steps and front.step(0) % 2 == 1)
    before = front.decisions()
    assert before
    assert not front.trial(3).directory.exists()
    outcome = front.resume()
    assert end_of(outcome, front.home) == undisturbed_end
    assert front.decisions()[: len(before)] == before
    require_delivered_once(outcome, front.home)


def test_a_trial_whose_checkpoint_tune_had_dropped_goes_on_from_its_own(
    front: FrontSweep, undisturbed_end: SweepEnd
) -> None:
    front.environment = front.environment | {"TUNE_GLOBAL_CHECKPOINT_S": "0"}  # it notes every checkpoint
    front.kill(lambda: front.step(0) > 2 * STOPPING.every_steps)
    dropped = list((front.home / "ray" / "front" / "tune" / "front-000").glob("checkpoint_*"))
    assert dropped
    for checkpoint in dropped:
        shutil.rmtree(checkpoint)
    newest = Path(front.trial(0).newest_checkpoint())
    # A trial that was trained from its start again would have to write its first checkpoint here.
    newest.with_name(f".{checkpoints.directory_name(STOPPING.every_steps)}").touch()
    outcome = front.resume()
    assert end_of(outcome, front.home) == undisturbed_end
    require_delivered_once(outcome, front.home)


def test_a_decision_that_a_killed_driver_had_written_is_acted_on_by_the_next(
    front: FrontSweep, undisturbed_end: SweepEnd
) -> None:
    front.kill(lambda: any(made.reason for made in front.decisions()), held=True)
    stopping = front.decisions()[-1]
    assert stopping.reason
    assert not (front.home / "ray" / stopping.trial / STOPPED).exists()
    outcome = front.resume()
    assert end_of(outcome, front.home) == undisturbed_end
    assert outcome.stopped_early[stopping.trial].step == stopping.step
    require_delivered_once(outcome, front.home)


def test_of_two_trials_at_once_every_decision_follows_from_those_before_it(
    front: FrontSweep, tmp_path: Path
) -> None:
    front.kill(lambda: len(front.decisions()) >= 2, concurrent=2)
    before = front.decisions()
    outcome = front.resume()
    decisions = front.decisions()
    assert decisions[: len(before)] == before
    rungs = FrontRungs(STOPPING, STEPS)
    for made in decisions:
        losses = dict(zip(("mean_psnr", "mean_log_frechet"), made.losses, strict=True))
        assert rungs.decide(made.trial, made.choice, made.step, losses) == made
    assert outcome.complete
    assert not outcome.failed
    assert {made.trial for made in decisions if made.reason} == set(outcome.stopped_early)
    assert len(outcome.finished) + len(outcome.stopped_early) == 4
    require_delivered_once(outcome, front.home)
    for trial in outcome.finished:
        whole = tmp_path / f"alone-{trial.name}"
        whole.mkdir()
        loop.train(resolve(trial.recipe), loop.Worker(), LocalHost(whole))
        run = Run(trial.name, front.home, str(front.home / "ray"))
        assert (run.directory / RECORD).is_file()
        assert same(state(run), state(Run(whole.name, tmp_path, str(tmp_path))))
