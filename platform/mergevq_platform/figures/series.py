"""Which columns of a curve a trade-off figure draws, by what name, and what it must say beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mergevq.errors import InputError
from mergevq_platform.curves import Curve


@dataclass(frozen=True)
class Series:
    """One line of the figure. `values`, `low` and `high` go with the curve's kept counts; NaN where not measured."""

    key: str
    label: str
    axis: Literal["left", "right"]
    role: Literal["main", "second", "baseline", "floor"]
    values: list[float]
    low: list[float] | None = None  # 95% interval
    high: list[float] | None = None


def kept_counts(curve: Curve) -> list[int]:
    """The kept counts, ascending. Raises `InputError` for a curve without rows."""
    if not curve.rows:
        raise InputError(f"the curve of '{curve.run}' has no rows: evaluate at least one kept count")
    return [int(keep) for keep in curve.column("keep")]


def tradeoff_series(curve: Curve) -> list[Series]:
    """The lines of the trade-off: Fréchet distances left; right the probe with its baselines, or PSNR without labels."""
    frechet = curve.frechet_key
    lines = [
        _series(curve, frechet, "Fréchet distance, true source", "left", "main"),
        _series(curve, f"{frechet}_recovered", "Fréchet distance, recovered source", "left", "second"),
        _series(curve, "probe_top1_cls", "linear probe, [CLS]", "right", "main"),
        _series(curve, "probe_top1_mean", "linear probe, mean of kept tokens", "right", "second"),
        _series(
            curve, "probe_top1_untrained", "linear probe, [CLS] of the untrained encoder", "right", "baseline"
        ),
        _series(curve, "majority_top1", "always the most frequent class", "right", "floor"),
    ]
    if not probed(curve):
        lines[2:] = [_series(curve, "psnr", "PSNR, true source", "right", "main")]
    return [line for line in lines if line is not None]


def probed(curve: Curve) -> bool:
    """Whether the curve holds a probe: it does where the pictures have labels."""
    return any("probe_top1_cls" in row for row in curve.rows)


def left_title(curve: Curve) -> str:
    """The Fréchet distance by its true name: never FID unless the standard Inception measured it."""
    return f"Fréchet distance, {curve.protocol['extractor']['description']}"


def right_title(curve: Curve) -> str:
    """What the right axis shows, with its unit."""
    return "top-1 accuracy of a linear probe, %" if probed(curve) else "PSNR, dB"


def notes(curve: Curve) -> list[str]:
    """What a reader must know to judge the figure: data, weights, interval, and the teacher's caveat last."""
    p = curve.protocol
    weights = "EMA weights" if p.get("ema") else "raw weights"
    said = [f"{p['images']:,} pictures of '{p['split']}', {weights} of step {p['step']:,}"]
    if probed(curve):
        trained = p.get("probe", {}).get("train_images")
        learned = f", learned from {trained:,} training pictures" if trained else ""
        said[0] += f"; probe with 95% Wilson interval{learned}"
    else:
        said.append("No labels, so no probe: PSNR is shown in its place.")
    if p.get("caveat"):
        said.append(p["caveat"])
    return said


def _series(
    curve: Curve,
    key: str,
    label: str,
    axis: Literal["left", "right"],
    role: Literal["main", "second", "baseline", "floor"],
) -> Series | None:
    def column(name: str) -> list[float] | None:
        values = [float(row.get(name, math.nan)) for row in curve.rows]
        return values if any(math.isfinite(value) for value in values) else None

    values = column(key)
    return (
        None
        if values is None
        else Series(key, label, axis, role, values, column(f"{key}_low"), column(f"{key}_high"))
    )
