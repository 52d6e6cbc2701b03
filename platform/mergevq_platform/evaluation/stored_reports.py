"""Reports of evaluations as the tracking store keeps them."""

from __future__ import annotations

from pathlib import Path

from mergevq_platform.evaluation.classifier import ClassifierReport
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.evaluation.report import EvaluationReport
from mergevq_platform.tracking.artifacts import fetch_files
from mergevq_platform.tracking.listing import TrackedRun
from mergevq_platform.tracking.store import Store

KINDS: tuple[type[Curve | GeneratorReport | ClassifierReport], ...] = (
    Curve,
    GeneratorReport,
    ClassifierReport,
)


def newest_report(store: Store, run: TrackedRun, folder: Path) -> EvaluationReport | None:
    """The report of the newest evaluation of `run`, its file copied below `folder`; None where it was not evaluated.

    Raises `InputError` for a file that is no report.
    """
    kinds = {f"{kind.folder}/{kind.file_name}": kind for kind in KINDS}
    files = fetch_files(store, run, folder, tuple(kinds))
    if not files:
        return None
    newest = files[-1]
    return kinds[f"{newest.parent.name}/{newest.name}"].load(newest)
