"""Reports of evaluations as the tracking store keeps them."""

from __future__ import annotations

from pathlib import Path

from mergevq_platform.evaluation.classifier_report import ClassifierReport
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.evaluation.rate_distortion_report import RateDistortionReport
from mergevq_platform.evaluation.report import EvaluationReport
from mergevq_platform.tracking.artifacts import fetch_files, fetch_own_files
from mergevq_platform.tracking.listing import TrackedRun
from mergevq_platform.tracking.store import Store

_ALLOCATORS = f"{RateDistortionReport.folder}/{RateDistortionReport.file_name}"
_OF_A_RUN: tuple[type[Curve | GeneratorReport | ClassifierReport], ...] = (
    Curve,
    GeneratorReport,
    ClassifierReport,
)
_KINDS = {f"{kind.folder}/{kind.file_name}": kind for kind in _OF_A_RUN}


def newest_report(store: Store, run: TrackedRun, folder: Path) -> EvaluationReport | None:
    """The report of the newest evaluation of `run`, its file copied below `folder`; None where it was not evaluated.

    Raises `InputError` for a file that is no report.
    """
    return _loaded(fetch_files(store, run, folder, tuple(_KINDS)))


def newest_rate_distortion(store: Store, run: TrackedRun, folder: Path) -> RateDistortionReport | None:
    """As `newest_report`, for the newest comparison of allocators of `run`."""
    files = fetch_files(store, run, folder, (_ALLOCATORS,))
    return RateDistortionReport.load(files[-1]) if files else None


def own_report(store: Store, run: TrackedRun, folder: Path) -> EvaluationReport | None:
    """The report that is among the artifacts of `run` itself, its file copied below `folder`; None where there is none."""
    return _loaded(fetch_own_files(store, run, folder, tuple(_KINDS)))


def _loaded(files: list[Path]) -> EvaluationReport | None:
    return _KINDS[f"{files[-1].parent.name}/{files[-1].name}"].load(files[-1]) if files else None
