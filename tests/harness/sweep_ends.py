"""The end of a sweep as its files and MLflow hold it: what a disturbed sweep must have in common with an undisturbed one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps.finished import Finished, finished_trials
from mergevq_platform.sweeps.front_rungs import DECISIONS, RungDecision, read_decisions
from mergevq_platform.sweeps.outcome import SweepOutcome
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.records import JOURNAL_NAME, read_metrics
from mergevq_platform.tracking.store import Store
from raynodes import journal_of, state, write_recipe

TIMED = ("seconds", "cpu_seconds")  # of a record


def question_file(tree: dict[str, Any], folder: Path, question: str, *, steps: int) -> Path:
    """A sweep's file whose trials, of one worker on a CPU, are measured on few images; `question` names `{recipe!r}`."""
    tree |= {"steps": steps, "cluster": {"workers": 1, "device": "cpu"}}
    tree["evaluation"] |= {"keeps": [4], "untrained_baseline": False, "images": 32, "probe_images": 32}
    file = folder / "question.py"
    file.write_text(question.format(recipe=write_recipe(tree, folder)))
    return file


@dataclass(frozen=True)
class SweepEnd:
    """All of a sweep that is not of the machine that ran it."""

    records: dict[str, dict[str, Any]]  # of finished trials
    stopped: dict[str, tuple[int, str]]  # trial -> step and reason
    decisions: list[RungDecision]
    winner: str
    journals: dict[str, dict[str, dict[int, float]]]  # trial -> metric -> step -> value
    checkpoints: dict[
        str, dict[str, str]
    ]  # trial -> file of its newest checkpoint -> digest of what it holds


def end_of(outcome: SweepOutcome, home: Path) -> SweepEnd:
    """The end of a sweep whose trials have all ended."""
    assert outcome.complete
    assert not outcome.failed
    name = outcome.settings.name
    runs = [Run(trial, home, str(home / "ray")) for trial in trials_of(outcome)]
    return SweepEnd(
        {trial.name: _of_any_home(trial, home) for trial in finished_trials(name, home)},
        {trial.name: (trial.step, trial.reason) for trial in outcome.stopped_early.values()},
        read_decisions(home / "ray" / name / DECISIONS),
        outcome.files["winner.yaml"].read_text(),
        {run.name: journal_of(run) for run in runs},
        {run.name: _contents(run) for run in runs},
    )


def trials_of(outcome: SweepOutcome) -> list[str]:
    """The names of the trials that finished or were stopped."""
    return sorted([*(trial.name for trial in outcome.finished), *outcome.stopped_early])


def require_delivered_once(outcome: SweepOutcome, home: Path) -> int:
    """Fail unless MLflow has the sweep and every trial once, ended as they did, with every value of their journals once.

    Returns the number of values.
    """
    ends = {outcome.settings.name: "FINISHED"}
    ends |= {trial.name: "FINISHED" for trial in outcome.finished}
    ends |= dict.fromkeys(outcome.stopped_early, "KILLED")
    store, values = Store.at(home), 0
    runs = list_runs(store)
    assert sorted((run.name, run.status) for run in runs) == sorted(ends.items())
    client = store.client()
    for run in runs:
        for key, points in read_metrics(home / "ray" / run.name / JOURNAL_NAME).items():
            history = client.get_metric_history(run.run_id, key)
            assert sorted((point.step, point.value) for point in history) == sorted(points.items()), key
            values += len(points)
    return values


def _of_any_home(trial: Finished, home: Path) -> dict[str, Any]:
    record = {key: value for key, value in asdict(trial).items() if key not in TIMED}
    return json.loads(json.dumps(record).replace(str(home), "HOME"))


def _contents(run: Run) -> dict[str, str]:
    files = dict(checkpoints.about(Path(run.newest_checkpoint()))["sha256"])
    # Its bytes are those of a pickle, which tell objects that are equal from one that stands twice.
    files["resume.pt"] = hashlib.sha256(_flat(state(run))).hexdigest()
    return files


def _flat(value: Any) -> bytes:
    match value:
        case torch.Tensor():
            return f"{value.dtype} {tuple(value.shape)} ".encode() + value.contiguous().numpy().tobytes()
        case dict():
            return b"".join(repr(key).encode() + _flat(value[key]) for key in sorted(value, key=repr))
        case list() | tuple():
            return b"[" + b",".join(map(_flat, value)) + b"]"
        case _:
            return repr(value).encode()
