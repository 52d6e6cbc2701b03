"""Learning-rate schedules: configurations, and one pure function of the step."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import pydantic

from mergevq.config import config
from mergevq.number_types import Fraction


@config
class ConstantScheduleConfig:
    """The base rate throughout, after a linear warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_steps: pydantic.NonNegativeInt = 0


@config
class StepScheduleConfig:
    """The base rate, multiplied by `factor` at every milestone, a fraction of the whole training."""

    kind: Literal["step"] = "step"
    warmup_steps: pydantic.NonNegativeInt = 0
    milestones: tuple[float, ...] = (0.85, 0.95)
    factor: pydantic.PositiveFloat = 0.1

    def __post_init__(self) -> None:
        if any(not 0 < milestone <= 1 for milestone in self.milestones):
            raise ValueError(
                f"milestones {list(self.milestones)} must be fractions of the training in (0, 1]"
            )
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} must increase")


@config
class CosineScheduleConfig:
    """Half a cosine from the base rate, after the warm-up, to `final_fraction` of it at the last step."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: pydantic.NonNegativeInt = 0
    final_fraction: Fraction = 0.0


ScheduleConfig = Annotated[
    ConstantScheduleConfig | StepScheduleConfig | CosineScheduleConfig, pydantic.Field(discriminator="kind")
]


def scale(schedule: ScheduleConfig, step: int, total_steps: int) -> float:
    """The factor in [0, 1] on the base rate for the optimizer step `step`, counted from 0, of `total_steps`.

    The warm-up rises linearly and its first step is already above zero: (step + 1) / warmup_steps. Steps past
    the end keep the last value.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    match schedule:
        case ConstantScheduleConfig():
            return 1.0
        case StepScheduleConfig():
            passed = sum(step >= round(milestone * total_steps) for milestone in schedule.milestones)
            return schedule.factor**passed
        case CosineScheduleConfig():
            span = max(total_steps - 1 - schedule.warmup_steps, 1)
            progress = min((step - schedule.warmup_steps) / span, 1.0)
            return schedule.final_fraction + (1 - schedule.final_fraction) * 0.5 * (
                1 + math.cos(math.pi * progress)
            )
    raise AssertionError(schedule)
