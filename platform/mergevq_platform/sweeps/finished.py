"""The record of a finished trial: its choice, its objectives and its curve."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mergevq.files import write_whole
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.figures.compared import Evaluation
from mergevq_platform.storage.json_text import json_text, without_nulls
from mergevq_platform.sweeps.space import Params, Value

RECORD = "finished.json"
STOPPED = "stopped.json"  # of a trial that the scheduler ended early


@dataclass(frozen=True)
class Finished:
    """The record of a finished trial, on disk whole or not at all."""

    name: str
    params: Params
    seed: int
    steps: int
    objectives: dict[str, float]
    curve: dict[str, Any]  # of `Curve`, or of `GeneratorReport`
    drawn: dict[str, int]  # kept count -> steps that drew it; of a fork its own steps
    seconds: float
    recipe: dict[str, Any]
    cpu_seconds: float | None = (
        None  # of the last process that trained it, rungs included; None for a group of workers
    )

    def save(self, path: Path) -> None:
        """Write as JSON, in one step."""
        write_whole(path, json_text(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Finished | None:
        """The record at `path`, if there is one; an objective that was no finite number is NaN."""
        if not path.is_file():
            return None
        record = cls(**json.loads(path.read_text()))
        objectives = {name: math.nan if value is None else value for name, value in record.objectives.items()}
        curve = {**record.curve, "rows": [without_nulls(row) for row in record.curve["rows"]]}
        return replace(record, objectives=objectives, curve=curve)

    def evaluation(self) -> Evaluation:
        """The curve."""
        return (GeneratorReport if "references" in self.curve else Curve)(**self.curve)


def finished_trials(name: str, home: Path) -> list[Finished]:
    """The finished trials of a sweep of this home, in their order."""
    files = sorted((home / "ray").glob(f"{name}-[0-9]*/{RECORD}"))
    return [record for file in files if (record := Finished.load(file))]


def by_choice(finished: Sequence[Finished]) -> list[list[Finished]]:
    """The trials of each choice, which are repetitions over seeds, in the order of the first."""
    found: dict[tuple[tuple[str, Value], ...], list[Finished]] = {}
    for trial in finished:
        found.setdefault(tuple(sorted(trial.params.items())), []).append(trial)
    return list(found.values())
