"""A sweep of 2,000 recorded trials: what its resume, its report and the end of each trial cost. CPU seconds, since load distorts others."""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.recorded_sweep import NAME, deliver, record_sweep
from benchmarks.timing import in_fresh_process
from mergevq_platform.sweeps.tuning import TUNE_FOLDER

TRIALS = 2000


def sweep_scale(trials: int = TRIALS, home: Path | None = None) -> list[str]:
    """Targets at 2,000 trials: the driver below 1.5 GiB, a resume below 60 s. The sweep stays in `home`, where one is given."""
    with tempfile.TemporaryDirectory() as folder:
        home = home or Path(folder)
        in_fresh_process(record_sweep, home, trials)
        parts = (_tunes_state, _deliveries, _end_of_a_trial, _report, _resume)
        return [f"{trials} trials, {in_fresh_process(part, home, trials)}" for part in parts]


def _tunes_state(home: Path, trials: int) -> str:
    """The state that Tune writes whole after an event, though at most a twentieth of its time."""
    (file,) = (home / "ray" / NAME / TUNE_FOLDER).glob("experiment_state-*.json")
    state = json.loads(file.read_text())
    written, _ = _timed(lambda: json.dumps(state))
    return f"Tune's state: {file.stat().st_size / trials:,.0f} bytes a trial, {written:.2f} s of CPU for its text"


def _deliveries(home: Path, trials: int) -> str:
    few = min(50, trials // 2)
    first, _ = _timed(lambda: deliver(home, iter(range(few))))
    deliver(home, iter(range(few, trials - few)))
    last, _ = _timed(lambda: deliver(home, iter(range(trials - few, trials))))
    return f"delivery of a trial to MLflow: {first / few:.2f} s of CPU for the first, {last / few:.2f} s for the last"


def _end_of_a_trial(home: Path, trials: int) -> str:
    from mergevq_platform.tracking.experiment_note import write_note
    from mergevq_platform.tracking.shared_view import write_views
    from mergevq_platform.tracking.store import Store

    store = Store.at(home)
    client = store.client()
    named = f"attributes.run_name = '{NAME}-{trials - 1:03d}'"
    experiments = [found.experiment_id for found in client.search_experiments()]
    run = client.search_runs(experiments, named)[0]
    views, key = _timed(lambda: write_views(store, client, run.info.experiment_id, run.info.run_id))
    note, _ = _timed(lambda: write_note(client, run.info.experiment_id, view=key))
    return (
        f"pages of the experiment at a trial's end: {views:.2f} s of CPU for views, {note:.2f} s for the note"
    )


def _report(home: Path, trials: int) -> str:
    from mergevq_platform.sweeps import report, stored
    from mergevq_platform.sweeps.finished import finished_trials

    definition = stored.stored_definition(NAME, home)
    read, found = _timed(lambda: finished_trials(NAME, home))
    written, _ = _timed(lambda: report.write(definition, NAME, found, home / "report"))
    return f"report: {read:.1f} s of CPU to read the records, {written:.1f} s to write it, {_peak_mebibytes()} MiB at its peak"


def _resume(home: Path, trials: int) -> str:
    from mergevq_platform.sweeps import driver

    seconds, outcome = _timed(lambda: driver.sweep(None, home=home, resume=NAME))
    assert len(outcome.finished) == trials
    return f"resume: {seconds:.1f} s of the driver's CPU, {_peak_mebibytes()} MiB at its peak"


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def _peak_mebibytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


MEASUREMENTS = {"sweep_scale": sweep_scale}
