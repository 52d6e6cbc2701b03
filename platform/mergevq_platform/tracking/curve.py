"""Curves in a journal: metrics over kept-token counts, written so that MLflow draws them by itself.

`curve/<key>` is logged with step = kept tokens. The part before the slash becomes a section of the chart
page, and the step its x axis: one chart per metric, one line per run. MLflow calls that axis "Step" whatever it
counts; an axis that is a metric has the metric's name, so the kept tokens are logged as one too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mergevq_platform.tracking.journal import Journal, JournalHeld
from mergevq_platform.tracking.records import (
    CURVE_DETAILS_PREFIX,
    CURVE_PREFIX,
    JOURNAL_NAME,
    KEPT_KEY,
    RunIdentity,
    new_uid,
    read_identity,
)

if TYPE_CHECKING:
    from mergevq_platform.tracking.listing import TrackedRun


CurveRows = Mapping[int, Mapping[str, float]]  # kept tokens -> key -> value


def append_curve(journal: Journal, rows: CurveRows, details: CurveRows | None = None) -> int:
    """Record `rows` and, under a prefix of their own, `details`; return how many values were new, their axis among them.

    A point that the run already has stays as it is: measure again into `open_for_curve`'s new run.
    """
    return sum(journal.append_metrics(kept, values) for kept, values in curve_records(rows, details))


def curve_records(rows: CurveRows, details: CurveRows | None = None) -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) with keys of `rows` under `curve/`, `KEPT_KEY`, and keys of `details` under `curve_details/`.

    In rising order of kept tokens.
    """
    details = details or {}
    return [
        (
            kept,
            {KEPT_KEY: kept}
            | {f"{CURVE_PREFIX}{key}": value for key, value in rows.get(kept, {}).items()}
            | {f"{CURVE_DETAILS_PREFIX}{key}": value for key, value in details.get(kept, {}).items()},
        )
        for kept in sorted({*rows, *details})
    ]


def open_for_curve(run_dir: Path, *, fresh: bool = False) -> Journal:
    """The journal that a new evaluation of the run in `run_dir` goes to.

    The run's own while it has none; else, with `fresh`, or while the run is still being written, the
    journal of a new run under `run_dir/evaluations/`, linked by `evaluates`: a second point at the same step
    would be a spike that cannot be deleted.
    """
    path = Path(run_dir) / JOURNAL_NAME
    identity = read_identity(path)
    if not fresh:
        own = _unless_held(path)
        if own is not None and not own.evaluated:
            return own
        if own is not None:
            own.close()
    return _linked(
        Path(run_dir) / "evaluations",
        evaluates=identity.uid,
        name=identity.name,
        experiment=identity.experiment,
        parent=identity.parent,
        user=identity.user,
    )


def open_for_evaluation(folder: Path, run: TrackedRun) -> Journal:
    """The journal, below `folder`, of a new run that measures `run`, of which only the store knows."""
    user = run.tags.get("mlflow.user")
    return _linked(
        folder, evaluates=run.uid, name=run.name, experiment=run.experiment, parent=run.parent, user=user
    )


def _linked(
    folder: Path, *, evaluates: str, name: str, experiment: str, parent: str | None, user: str | None
) -> Journal:
    uid = new_uid()
    again = RunIdentity(
        uid=uid,
        name=f"{name}-evaluation-{uid[:6]}",
        experiment=experiment,
        kind="evaluation",
        parent=parent,
        evaluates=evaluates,
        user=user,
    )
    return Journal(folder / uid[:12] / JOURNAL_NAME, again)


def _unless_held(path: Path) -> Journal | None:
    try:
        return Journal(path)
    except JournalHeld:
        return None
