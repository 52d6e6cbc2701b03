"""Objectives: scalars made from a trial's curve, over kept tokens or, of generators, over guidance scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mergevq.errors import InputError
from mergevq_platform.evaluation.curve import lacking_sentences
from mergevq_platform.evaluation.rate_distortion_report import RateDistortionReport
from mergevq_platform.figures import pareto
from mergevq_platform.figures.compared import Evaluation


@dataclass(frozen=True)
class UntrainedPoint:
    """The untrained tokenizer of a sweep's base recipe: the reference point of hypervolumes. Measured once per sweep."""

    frechet: float
    probe: float  # percent


@dataclass(frozen=True)
class AllocatorMetric:
    """A metric of an allocator at a mean kept count: a scalar of the report of a recipe's `evaluation.budgets`."""

    key: str
    allocator: str
    budget: float

    def of(self, report: RateDistortionReport | None) -> float:
        """Its value. Raises `InputError` for a report without it, naming what would give it."""
        row = None if report is None else report.at(self.allocator, self.budget)
        if row is None or self.key not in row:
            lacking = "" if report is None else "; ".join(lacking_sentences(report.protocol))
            raise InputError(
                f"there is no '{self.key}' of the allocator {self.allocator} at a mean of {self.budget:g} kept tokens "
                f"({lacking or 'nothing was measured there'}): name both in evaluation.budgets and evaluation.allocators"
            )
        return row[self.key]


@dataclass(frozen=True)
class Objective:
    """A named scalar of a curve: `of(curve, reference)` of a `Curve`, or of a `GeneratorReport` where `task` says so.

    It may raise `InputError` where the curve lacks what it needs.
    """

    name: str
    mode: Literal["min", "max"]
    of: Callable[[Evaluation, UntrainedPoint | None], float]
    needs_reference: bool = False
    needs_probe: bool = False  # and so labels
    task: Literal["tokenizer", "generator"] = "tokenizer"
    at: AllocatorMetric | None = None  # in place of a scalar of the curve

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.mode == "max" else -1


def mean_log_frechet(keeps: Sequence[int] | None = None) -> Objective:
    """Mean over kept counts of the natural logarithm of the Fréchet distance (true source); lower is better."""
    return Objective(
        "mean_log_frechet",
        "min",
        lambda curve, _: float(
            np.mean([math.log(max(v, 1e-12)) for v in values(curve, curve.frechet_key, keeps)])
        ),
    )


def mean_probe(keeps: Sequence[int] | None = None, feature: str = "cls") -> Objective:
    """Mean over kept counts of the linear probe's top-1 in percent; higher is better."""
    return Objective(
        f"mean_probe_{feature}",
        "max",
        lambda curve, _: float(np.mean(values(curve, f"probe_top1_{feature}", keeps))),
        needs_probe=True,
    )


def mean_psnr(keeps: Sequence[int] | None = None) -> Objective:
    """Mean over kept counts of PSNR in dB (true source); higher is better. Needs no labels."""
    return Objective("mean_psnr", "max", lambda curve, _: float(np.mean(values(curve, "psnr", keeps))))


def hypervolume(keeps: Sequence[int] | None = None) -> Objective:
    """Area that the points (ln Fréchet distance, probe in percent) of a curve dominate, up to the untrained tokenizer's."""

    def of(curve: Evaluation, reference: UntrainedPoint | None) -> float:
        if reference is None:
            raise InputError("the hypervolume needs the untrained tokenizer's point")
        return pareto.hypervolume(points(curve, keeps), (math.log(reference.frechet), reference.probe))

    return Objective("hypervolume", "max", of, needs_reference=True, needs_probe=True)


def sample_frechet(scale: float | None = 1.0) -> Objective:
    """Fréchet distance of a generator's images at a guidance scale (1: without guidance; none: the best); lower is better."""
    return _of_samples("sample_frechet", "min", scale, lambda report: report.frechet_key)


def sample_class_top1(scale: float | None = 1.0) -> Objective:
    """Share of samples (percent) whose class a probe of real images recognises, at a scale (none: the best); higher is
    better."""
    return _of_samples("sample_class_top1", "max", scale, lambda report: "class_top1")


def _of_samples(
    name: str, mode: Literal["min", "max"], scale: float | None, key: Callable[[Evaluation], str]
) -> Objective:
    def of(report: Evaluation, _: UntrainedPoint | None) -> float:
        if lacking := [row["scale"] for row in report.rows if key(report) not in row]:
            reasons = "; ".join(lacking_sentences(report.protocol))
            raise InputError(
                f"the report has no '{key(report)}' at guidance scale {lacking[0]:g} ({reasons})"
            )
        found = {row["scale"]: row[key(report)] for row in report.rows}
        if scale is None:
            return min(found.values()) if mode == "min" else max(found.values())
        if scale not in found:
            raise InputError(
                f"an objective asks for guidance scale {scale:g}, but the report has {', '.join(f'{s:g}' for s in found)}: "
                "name it in task.generation.scales, and in the rung where that names scales"
            )
        return found[scale]

    where = "best" if scale is None else f"at_{scale:g}"
    return Objective(f"{name}_{where}", mode, of, task="generator")


def psnr_at(budget: float, allocator: str = "fixed") -> Objective:
    """PSNR in dB where an allocator chooses each image's count, at a mean of `budget` kept tokens; higher is better.

    The recipe names both, in `evaluation.budgets` and, where not all that need no run are wanted, `evaluation.allocators`.
    """
    return _of_allocator("psnr", budget, allocator)


def saved_tokens_at(budget: float, allocator: str) -> Objective:
    """The tokens that an allocator saves at equal PSNR beside one count for all, at a mean of `budget`; higher is better."""
    return _of_allocator("saved_tokens", budget, allocator)


def _of_allocator(key: str, budget: float, allocator: str) -> Objective:
    def of(report: Evaluation, _: UntrainedPoint | None) -> float:
        raise InputError(f"'{key}' of the allocator {allocator} is no scalar of the curve of '{report.run}'")

    return Objective(
        f"{key}_{allocator}_at_{budget:g}", "max", of, at=AllocatorMetric(key, allocator, budget)
    )


def points(curve: Evaluation, keeps: Sequence[int] | None = None) -> list[tuple[float, float]]:
    """(ln Fréchet distance, probe of [CLS] in percent) at each kept count."""
    distances = [math.log(max(v, 1e-12)) for v in values(curve, curve.frechet_key, keeps)]
    return list(zip(distances, values(curve, "probe_top1_cls", keeps), strict=True))


def values(curve: Evaluation, key: str, keeps: Sequence[int] | None = None) -> list[float]:
    """A metric at the given kept counts, or at all. Raises `InputError` if the curve lacks one."""
    rows = [row for row in curve.rows if keeps is None or int(row["keep"]) in keeps]
    if len(rows) < len(keeps or ()):
        have = ", ".join(f"{row['keep']:.0f}" for row in curve.rows)
        raise InputError(f"an objective asks for kept counts {list(keeps or ())}, but the curve has {have}")
    if any(key not in row for row in rows):
        reasons = "; ".join(lacking_sentences(curve.protocol)) or "probes need labelled images"
        raise InputError(f"the curve has no '{key}': {reasons}")
    return [row[key] for row in rows]
