import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergevq.config import config, parse
from mergevq.errors import InputError
from mergevq.schedules import (
    ConstantScheduleConfig,
    CosineScheduleConfig,
    ScheduleConfig,
    StepScheduleConfig,
    scale,
)


@given(
    schedule=st.sampled_from(
        [
            ConstantScheduleConfig(),
            ConstantScheduleConfig(warmup_steps=7),
            StepScheduleConfig(warmup_steps=3),
            CosineScheduleConfig(),
            CosineScheduleConfig(warmup_steps=9, final_fraction=0.1),
        ]
    ),
    step=st.integers(0, 500),
    total=st.integers(10, 400),
)
def test_the_scale_stays_between_zero_and_one(schedule, step, total):
    assert 0 <= scale(schedule, step, total) <= 1


def test_warm_up_rises_linearly_from_its_first_step_to_one():
    values = [scale(ConstantScheduleConfig(warmup_steps=4), step, 100) for step in range(6)]
    assert values == [0.25, 0.5, 0.75, 1, 1, 1]


def test_cosine_passes_its_middle_and_ends_at_its_final_fraction_on_the_last_step():
    schedule = CosineScheduleConfig(warmup_steps=10, final_fraction=0.2)
    assert scale(schedule, 10, 111) == 1
    assert math.isclose(scale(schedule, 60, 111), 0.6)
    assert math.isclose(scale(schedule, 110, 111), 0.2)
    assert math.isclose(scale(schedule, 5000, 111), 0.2)


def test_cosine_never_rises_after_the_warm_up():
    values = [scale(CosineScheduleConfig(warmup_steps=5), step, 50) for step in range(5, 60)]
    assert values == sorted(values, reverse=True)


def test_step_multiplies_at_each_milestone():
    schedule = StepScheduleConfig(milestones=(0.85, 0.95), factor=0.1)
    assert [scale(schedule, step, 200) for step in (0, 169)] == [1, 1]
    assert math.isclose(scale(schedule, 170, 200), 0.1)
    assert math.isclose(scale(schedule, 189, 200), 0.1)
    assert math.isclose(scale(schedule, 190, 200), 0.01)


def test_a_schedule_without_room_after_its_warm_up_still_ends():
    assert scale(CosineScheduleConfig(warmup_steps=10), 9, 10) == 1
    assert scale(CosineScheduleConfig(warmup_steps=10), 10, 10) == 1
    assert scale(CosineScheduleConfig(warmup_steps=10), 11, 10) == 0


@config
class _Holder:
    schedule: ScheduleConfig


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"kind": "step", "milestones": [0.9, 0.5]}, "must increase"),
        ({"kind": "step", "milestones": [90]}, "fractions"),
        ({"kind": "cosine", "final_fraction": 2}, "final_fraction"),
        ({"kind": "sine"}, "schedule.kind"),
    ],
)
def test_an_impossible_schedule_is_refused_with_its_reason(tree, words):
    with pytest.raises(InputError, match=words):
        parse(_Holder, {"schedule": tree})
