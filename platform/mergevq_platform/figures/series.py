"""The series of a trade-off figure: columns of a curve, their names, the notes beside them."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Literal

from mergevq.errors import InputError
from mergevq.hub import short_name
from mergevq_platform.evaluation.curve import Curve

# Okabe & Ito's palette: told apart by colour-blind readers, and without colour by dashes and markers.
LEFT, RIGHT, GREY, FAINT = "#0072b2", "#d55e00", "#555555", "#8a8a8a"
LOG_FROM = 30  # ratio of the largest to the smallest distance from which the axis is logarithmic
ROOM = 0.055  # share of the axis that the label of a kept count needs

Role = Literal["main", "second", "baseline", "second_baseline", "floor"]


@dataclass(frozen=True)
class Series:
    """One line of the figure. `values`, `low` and `high` go with the curve's kept counts; NaN where not measured."""

    key: str
    label: str
    axis: Literal["left", "right"]
    role: Role
    values: list[float]
    low: list[float] | None = None  # 95% interval
    high: list[float] | None = None

    @property
    def colour(self) -> str:
        """Its axis' colour, or a grey for what is only there to compare with."""
        match self.role:
            case "baseline":
                return GREY
            case "second_baseline" | "floor":
                return FAINT
            case _:
                return LEFT if self.axis == "left" else RIGHT


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
        _series(
            curve,
            "probe_top1_untrained_mean",
            "linear probe, mean of the untrained encoder's tokens",
            "right",
            "second_baseline",
        ),
        _series(curve, "majority_top1", "always the most frequent class", "right", "floor"),
    ]
    if not probed(curve):
        lines[2:] = [_series(curve, "psnr", "PSNR, true source", "right", "main")]
    return [line for line in lines if line is not None]


def probed(curve: Curve) -> bool:
    """Whether the curve holds a probe: it does where the images have labels."""
    return any("probe_top1_cls" in row for row in curve.rows)


def left_title(curve: Curve) -> list[str]:
    """Lines: the Fréchet distance by its true name (whose features, and what it is not), and which way is better."""
    title = f"Fréchet distance, {curve.protocol['extractor']['description']}"
    return [*textwrap.wrap(title, 52), "lower is better"]


def right_title(curve: Curve) -> list[str]:
    """Lines: the metric of the right axis, its unit, and which way is better."""
    return ["top-1 accuracy of a linear probe, %" if probed(curve) else "PSNR, dB", "higher is better"]


def ticks(curve: Curve, newline: str) -> list[str]:
    """The labels of the kept counts: the count, and the share of the grid's tokens that is merged away.

    Nothing stands where its neighbour's label would be; the first and the last count always have one.
    """
    places = [math.log(keep) for keep in kept_counts(curve)]
    room = ROOM * (places[-1] - places[0])
    labelled = {0, len(places) - 1}
    free_from = places[0] + room
    for i, place in enumerate(places[1:-1], 1):
        if free_from <= place <= places[-1] - room:
            labelled.add(i)
            free_from = place + room
    said = []
    for i, row in enumerate(curve.rows):
        share = f"{newline}{row['merge_ratio']:.0%}" if "merge_ratio" in row else ""
        said.append(f"{row['keep']:.0f}{share}" if i in labelled else "")
    return said


def finite(lines: list[Series]) -> list[float]:
    """Every value and bound that an axis has to show."""
    values = [value for line in lines for value in (*line.values, *(line.low or ()), *(line.high or ()))]
    return [value for value in values if math.isfinite(value)]


def logarithmic(lines: list[Series]) -> bool:
    """Whether these distances span so much that only a logarithmic axis shows the small ones."""
    return logarithmic_values(finite(lines))


def logarithmic_values(values: list[float]) -> bool:
    """Whether these values span so much that only a logarithmic axis shows the small ones."""
    return bool(values) and min(values) > 0 and max(values) > LOG_FROM * min(values)


def few_images(dim: int) -> str:
    """The caveat where images are no more than features."""
    return f"No more images than the {dim} features: the Fréchet distance is strongly biased upwards"


def notes(curve: Curve, bars: str = "bands and bars are 95% Wilson intervals") -> list[str]:
    """Notes of the figure: data, weights, what its bars are, and the teacher's caveat last."""
    p = curve.protocol
    source = f"'{short_name(p['data'])}' " if p.get("data") else ""
    said = [
        f"{p['images']:,} images of '{p['split']}', data {source}{p['data_fingerprint'][:12]}; "
        f"{curve.weights()}"
    ]
    if probed(curve):
        trained = p.get("probe", {}).get("train_images")
        learned = f"learned from {trained:,} training images" if trained else ""
        if parts := [part for part in (learned, bars) if part]:
            said.append(f"Probe: {'; '.join(parts)}")
    else:
        why = p.get("lacking", {}).get("probe", "no labels")
        if "representation" not in curve.suites:
            why = "only the reconstruction was measured"
        said.append(f"{why[0].upper()}{why[1:]}, so no probe: PSNR is shown in its place")
    dim = p["extractor"].get("dim", 0)
    if p["images"] <= dim:
        said.append(few_images(dim))
    if p.get("caveat"):
        said.append(p["caveat"])
    return said


def _series(
    curve: Curve,
    key: str,
    label: str,
    axis: Literal["left", "right"],
    role: Role,
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
