"""A sweep that is told to end: SIGTERM, as a stopped job gets, means what Ctrl-C means, and nothing is lost by it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mergevq_platform.sweeps import Grid, Sweep, choice, closing, mean_psnr
from mergevq_platform.sweeps.driver import _terminated_as_interrupted
from mergevq_platform.sweeps.outcome import gathered
from mergevq_platform.sweeps.stored import SweepSettings
from mergevq_platform.tracking.journal import JOURNAL_NAME, Journal, RunIdentity
from mergevq_platform.tracking.store import Store


def test_sigterm_interrupts_a_sweep_and_only_a_sweep() -> None:
    seen: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    ctrl_c = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with _terminated_as_interrupted():
            os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGINT]
        assert signal.getsignal(signal.SIGTERM) is before
    finally:
        signal.signal(signal.SIGINT, ctrl_c)


def test_trials_that_have_reported_nothing_are_left_to_run(tmp_path: Path) -> None:
    sweep = Sweep(
        name="s",
        question="?",
        recipe="demo",
        space={"steps": choice(1, 2, 3)},
        search=Grid(),
        objectives=(mean_psnr(),),
    )
    settings = SweepSettings("s", str(tmp_path), None, None, "u", "cpu")
    path = str(tmp_path / "ray" / "s" / "tune" / "s-001")
    # As Ray Tune's results of trials without a report: interrupted, and failed at once; the third was never made.
    results: Any = [
        SimpleNamespace(config=None, error=None, path=None, metrics=None),
        SimpleNamespace(config=None, error=RuntimeError("no room"), path=path, metrics=None),
    ]
    outcome = gathered(sweep, settings, results)
    assert not outcome.complete
    assert list(outcome.failed) == ["s-001"]
    assert "no room" in outcome.failed["s-001"]
    assert outcome.finished == []
    assert outcome.stopped_early == {}


def test_a_trial_that_still_delivers_its_last_records_is_closed_after_it(tmp_path: Path) -> None:
    directory = tmp_path / "trial"
    held = Journal(directory / JOURNAL_NAME, RunIdentity(name="trial", experiment="e", user="someone"))
    timer = threading.Timer(0.5, held.close)
    timer.start()
    closing.closed(directory, Store.at(tmp_path, None), "KILLED", {"mergevq.stopped": "early"})
    timer.join()
    with Journal(directory / JOURNAL_NAME) as journal:
        assert journal.status == "KILLED"


def test_a_journal_that_is_never_let_go_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(closing, "CLOSING_SECONDS", 0.0)
    directory = tmp_path / "trial"
    with Journal(directory / JOURNAL_NAME, RunIdentity(name="trial", experiment="e", user="someone")):
        closing.closed(directory, Store.at(tmp_path, None), "KILLED", {})
    assert "the end of trial is not recorded: " in capsys.readouterr().err
