"""Curves of a comparison: points over seeds, axes, and notes for the reader.

A generator's curve runs over guidance scales instead of kept tokens.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mergevq.errors import InputError
from mergevq.hub import short_name
from mergevq_platform.evaluation.curve import Curve, lacking_sentences
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.figures.pareto import front
from mergevq_platform.figures.series import few_images, notes, probed

Evaluation = Curve | GeneratorReport


@dataclass(frozen=True)
class Entry:
    """A curve in a comparison. Entries of one `label` are repetitions over seeds; those of one `group` share a colour."""

    label: str
    group: str
    curve: Evaluation


@dataclass(frozen=True)
class Point:
    """One kept count, or guidance scale, of one label: means over its seeds, standard deviations (0 for a single seed)."""

    label: str
    group: str
    at: float  # the kept count or the scale
    loss: float  # Fréchet distance
    gain: float  # what `ComparisonAxes.gain_key` names
    loss_std: float
    gain_std: float


@dataclass(frozen=True)
class ComparisonAxes:
    """The axes of a comparison: the metric against the Fréchet distance, and what its curves run over."""

    x_key: str  # of what a curve runs over: kept tokens or guidance scales
    x_column: str
    x_title: str
    x_format: str  # of one value
    gain_key: str
    gain_title: str
    identity: tuple[str, ...]  # of the protocol: what must be equal for two numbers to mean the same


IDENTITY = ("extractor", "data_fingerprint", "images")


def comparison_axes(curve: Evaluation) -> ComparisonAxes:
    """The axes: of a tokenizer the probe over kept tokens, or PSNR without labels; of a generator the Inception score over guidance
    scales or, with an extractor that knows no classes, how often the asked class is recognised."""
    if isinstance(curve, Curve):
        with_probe = probed(curve)
        return ComparisonAxes(
            x_key="keep",
            x_column="kept",
            x_title="kept tokens",
            x_format="{:g} kept tokens",
            gain_key="probe_top1_cls" if with_probe else "psnr",
            gain_title=(
                "linear probe of [CLS], top-1 % (higher is better)"
                if with_probe
                else "PSNR, dB (higher is better)"
            ),
            identity=(*IDENTITY, "split", "preprocessing"),
        )
    score = curve.protocol["keys"]["inception_score"]
    scored = all(score in row for row in curve.rows)
    return ComparisonAxes(
        x_key="scale",
        x_column="scale",
        x_title="guidance scale",
        x_format="guidance scale {:g}",
        gain_key=score if scored else "class_top1",
        gain_title="Inception score (higher is better)"
        if scored
        else "class recognised, % (higher is better)",
        identity=(*IDENTITY, "reference") if scored else (*IDENTITY, "reference", "class_probe"),
    )


def require_one_identity(curves: Sequence[Evaluation]) -> None:
    """Raise `InputError` unless all curves have points, measured by the same protocol on the same images."""
    if not curves:
        raise InputError("there is no curve to compare")
    for curve in curves:
        for key in (curve.frechet_key, comparison_axes(curve).gain_key):
            if any(key not in row for row in curve.rows):
                reasons = "; ".join(lacking_sentences(curve.protocol)) or "it was not asked for"
                raise InputError(
                    f"the curve of '{curve.run}' has no '{key}' everywhere ({reasons}): evaluate it again, with --suite all"
                )
    first, ours = curves[0], comparison_axes(curves[0])
    for curve in curves[1:]:
        if comparison_axes(curve).x_key != ours.x_key:
            raise InputError(
                f"one of '{first.run}' and '{curve.run}' is a tokenizer, the other a generator: compare like with like"
            )
        for key in ours.identity:
            mine, theirs = first.protocol.get(key), curve.protocol.get(key)
            if mine != theirs:
                raise InputError(
                    f"'{first.run}' and '{curve.run}' were not measured alike ({key}: {_short(mine)} and {_short(theirs)}): "
                    "evaluate both on the same data with the same extractor"
                )
        if comparison_axes(curve).gain_key != ours.gain_key:
            raise InputError(f"only one of '{first.run}' and '{curve.run}' has a probe")


def averaged(entries: Sequence[Entry]) -> list[Point]:
    """The points of every label, means over seeds, by label and rising kept count or scale."""
    found: list[Point] = []
    by_label: dict[str, list[Entry]] = {}
    for entry in entries:
        by_label.setdefault(entry.label, []).append(entry)
    for label, same in by_label.items():
        names, frechet = comparison_axes(same[0].curve), same[0].curve.frechet_key
        for at in sorted({row[names.x_key] for entry in same for row in entry.curve.rows}):
            rows = [row for entry in same for row in entry.curve.rows if row[names.x_key] == at]
            loss = np.array([row[frechet] for row in rows])
            gains = np.array([row[names.gain_key] for row in rows])
            found.append(
                Point(
                    label,
                    same[0].group,
                    at,
                    float(loss.mean()),
                    float(gains.mean()),
                    *(float(v.std(ddof=1)) if len(v) > 1 else 0.0 for v in (loss, gains)),
                )
            )
    return found


def best_of(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in distance and gain, by rising distance."""
    return [points[index] for index in front([(p.loss, p.gain) for p in points])]


def by_label(points: Sequence[Point]) -> list[list[Point]]:
    """The points of each label."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.label, []).append(point)
    return list(found.values())


def loss_title(curve: Evaluation) -> str:
    """The Fréchet axis, by its true name."""
    title = f"{curve.frechet_key} (lower is better): Fréchet distance, {curve.protocol['extractor']['description']}"
    return "\n".join(textwrap.wrap(title, 62))


def caveats_of(curve: Evaluation) -> list[str]:
    """Caveats of a comparison with this curve."""
    if isinstance(curve, Curve):
        return notes(curve, bars="")
    p = curve.protocol
    said = [
        f"{p['images']:,} images a point, classes in turn, against {p['reference']['images']:,} real ones of "
        f"'{p['reference']['split']}', data '{short_name(p['data'])}' {p['data_fingerprint'][:12]}; EMA weights; "
        f"{p['guidance']['schedule']} guidance"
    ]
    if comparison_axes(curve).gain_key == "class_top1":
        probe = p["class_probe"]
        said.append(
            f"Class: {probe['kind']}; {probe['train_images']:,} training images; real images {probe['real_top1']:.1f}%, "
            f"chance {p['chance_top1']:.1f}%"
        )
    if (dim := p["extractor"].get("dim", 0)) >= p["images"]:
        said.append(few_images(dim))
    return said


def common_notes(entries: Sequence[Entry]) -> list[str]:
    """The notes of a comparison: the first curve's, with the weights of all."""
    first = entries[0].curve
    said = caveats_of(first)
    if isinstance(first, Curve):
        weights = list(dict.fromkeys(e.curve.weights() for e in entries if isinstance(e.curve, Curve)))
        every = " and ".join(weights) if len(weights) < 4 else f"weights of {len(weights)} different steps"
        said[0] = said[0].replace(first.weights(), every)
    if len({entry.label for entry in entries}) < len(entries):
        said.append("Points are means over seeds, bars one standard deviation of them")
    return said


def _short(value: Any) -> str:
    text = value.get("name", str(value)) if isinstance(value, Mapping) else str(value)
    return text[:40]
