"""Sweeps as their trials leave them on disk, with numbers that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mergevq_platform.sweeps import Sweep
from mergevq_platform.sweeps.finished import RECORD, Finished
from mergevq_platform.sweeps.stored import SweepSettings

PROTOCOL: dict[str, Any] = {
    "extractor": {"name": "random_v1", "description": "features of a fixed random network"},
    "data": "/data",
    "data_fingerprint": "d" * 64,
    "images": 32,
    "split": "val",
    "step": 8,
    "ema": True,
}


def finished(
    name: str,
    params: dict[str, Any],
    points: Mapping[int, tuple[float, float]],
    *,
    psnr: float | None = None,
    seed: int = 0,
) -> Finished:
    """A trial with a curve: kept tokens -> (Fréchet distance, PSNR). Its objective is `psnr`, else the mean of the curve's."""
    rows = [
        {"keep": float(keep), "merge_ratio": 0.0, "rfd_random_v1": distance, "psnr": own}
        for keep, (distance, own) in points.items()
    ]
    mean = sum(own for _, own in points.values()) / len(points)
    return Finished(
        name=name,
        params=params,
        seed=seed,
        steps=8,
        objectives={"mean_psnr": mean if psnr is None else psnr},
        curve={"run": name, "rows": rows, "protocol": PROTOCOL},
        drawn={"4": 8},
        seconds=60.0,
        recipe={"name": "x"},
    )


def stored(home: Path, name: str, sweep: Sweep, trials: Sequence[Finished]) -> None:
    """Write a sweep and its finished trials where `mergevq compare` finds them."""
    settings = SweepSettings(name, str(home), None, None, "0" * 32, "cpu")
    settings.run(name).directory.mkdir(parents=True)
    settings.save(sweep)
    for trial in trials:
        directory = settings.run(trial.name).directory
        directory.mkdir()
        trial.save(directory / RECORD)
