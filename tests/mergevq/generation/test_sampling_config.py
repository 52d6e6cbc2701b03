"""Guidance: schedules by their formulas, and no unconditional half where it changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.generation import GuidanceConfig
from mergevq.generation.sampling_config import guided_steps

KINDS = ("raster", "mergear", "random_order")


def test_schedules_are_their_formulas() -> None:
    for f in (0.0, 0.25, 0.5, 0.99):
        assert GuidanceConfig(scale=4.0).scales(f, 1) == (4.0,)
        assert GuidanceConfig(scale=4.0, schedule="linear").scales(f, 1) == (pytest.approx(1 + 3 * f),)
        rar = GuidanceConfig(scale=4.0, schedule="power_cosine", power=2.5).scales(f, 1)
        assert rar == (pytest.approx(1 + 3 * 0.5 * (1 - math.cos(math.pi * f**2.5))),)


def test_sub_tokens_have_their_own_scales_and_an_interval_bounds_them() -> None:
    guidance = GuidanceConfig(scale=(1.9, 2.0), interval=(0.25, 0.5))
    assert guidance.scales(0.25, 2) == pytest.approx((1.9, 2.0))
    assert guidance.scales(0.2, 2) == guidance.scales(0.5, 2) == (1.0, 1.0)
    with pytest.raises(InputError, match=r"guidance\.scale has 2 values, the codes 3 sub-tokens"):
        guidance.scales(0.3, 3)
    with pytest.raises(InputError, match="from < to"):
        parse(GuidanceConfig, {"interval": [0.5, 0.5]})


@given(
    st.sampled_from(["constant", "linear", "power_cosine"]),
    st.floats(0, 5),
    st.tuples(st.integers(0, 9), st.integers(1, 10)),
)
def test_guided_steps_are_those_whose_scale_is_not_one(
    schedule: str, scale: float, ends: tuple[int, int]
) -> None:
    low, length = ends
    interval = (low / 20, min(1.0, (low + length) / 20))
    guidance = parse(GuidanceConfig, {"schedule": schedule, "scale": scale, "interval": interval})
    fractions = [step / 10 for step in range(10)]
    needed = [s for s, f in enumerate(fractions) if guidance.scales(f, 1) != (1.0,)]
    assert list(guided_steps(guidance, fractions, 1)) == needed, "guided steps are consecutive"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("guidance", "guided"),
    [
        ({}, range(0)),
        ({"scale": 2.0}, range(9)),
        ({"scale": 2.0, "schedule": "linear"}, range(1, 9)),
        ({"scale": (1.0, 2.0), "interval": (0.5, 0.75)}, None),
    ],
)
def test_the_unconditional_half_is_computed_only_where_the_scale_is_not_one(
    random_generator: Callable, generate: Callable, kind: str, guidance: dict, guided: range | None
) -> None:
    generator = random_generator(kind)
    total = 9 if kind == "random_order" else 16
    config = GuidanceConfig(**guidance)
    if guided is None:
        guided = guided_steps(config, [s / total for s in range(total)], 2)
        assert 0 < guided.start < guided.stop < total
    elif guided:
        guided = range(guided.start, total)
    rows: list[int] = []
    generator.tokens.heads[0].register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    generate(generator, torch.tensor([0, 1, 2]), guidance=config)
    assert rows == [6 if step in guided else 3 for step in range(total)]
