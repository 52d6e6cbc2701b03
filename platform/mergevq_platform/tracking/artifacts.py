"""Files that an evaluation left in the tracking store, brought here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mergevq_platform.tracking.listing import TrackedRun, list_runs
from mergevq_platform.tracking.store import Store, import_mlflow

CURVE_FILES = ("curve/curve.json", "generation/report.json")  # of a tokenizer, of a generator


def fetch_curve_files(store: Store, run: TrackedRun, folder: Path) -> list[Path]:
    """The files of the curves of `run` and of the runs that evaluate it, oldest first, copied below `folder`."""
    return fetch_files(store, run, folder, CURVE_FILES)


def fetch_files(store: Store, run: TrackedRun, folder: Path, names: Sequence[str]) -> list[Path]:
    """The artifacts of these names, FOLDER/FILE, of `run` and of the runs that evaluate it, oldest first, copied below `folder`."""
    again = [found for found in list_runs(store, run.experiment) if found.evaluates == run.uid]
    measured = sorted([run, *again], key=lambda found: found.ended_ms or found.started_ms)
    return [file for found in measured for file in fetch_own_files(store, found, folder, names)]


def fetch_own_files(store: Store, run: TrackedRun, folder: Path, names: Sequence[str]) -> list[Path]:
    """The artifacts of these names that `run` itself has, copied below `folder`."""
    mlflow = import_mlflow()
    files = []
    with store.session() as client:
        for name in names:
            kind = name.partition("/")[0]
            if name not in [file.path for file in client.list_artifacts(run.run_id, kind)]:
                continue
            target = folder / "fetched" / run.uid[:12] / kind
            target.mkdir(parents=True, exist_ok=True)
            local = mlflow.artifacts.download_artifacts(
                run_id=run.run_id,
                artifact_path=name,
                dst_path=str(target),
                tracking_uri=store.uri,
            )
            files.append(Path(local))
    return files
