"""Drawing sub-tokens: the definitions of temperature, top-k and top-p."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.generation import SamplingConfig
from mergevq.generation.code_sampler import draw_sub_token


def probabilities(logits: list[float], temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """By definition, one value after the other."""
    scaled = np.array(logits) / temperature
    order = sorted(range(len(logits)), key=lambda v: (-scaled[v], v))
    kept = order[:top_k] if top_k else order
    weights = {v: np.exp(scaled[v] - scaled.max()) for v in kept}
    total, nucleus, mass = sum(weights.values()), [], 0.0
    for v in kept:
        nucleus.append(v)
        mass += weights[v] / total
        if mass >= top_p:
            break
    result = np.zeros(len(logits))
    for v in nucleus:
        result[v] = weights[v]
    return result / result.sum()


def frequencies(logits: list[float], *settings: float) -> np.ndarray:
    """Of evenly spread numbers: exact up to one part in their count."""
    count = 5_000
    spread = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = draw_sub_token(torch.tensor(logits, dtype=torch.float64).expand(count, -1), spread, *settings)  # type: ignore[arg-type]
    return np.bincount(drawn.numpy(), minlength=len(logits)) / count


@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=9),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.integers(0, 5),
    st.sampled_from([0.13, 0.5, 0.87, 1.0]),
)
def test_values_come_as_often_as_the_definition_says(
    logits: list[int], temperature: float, top_k: int, top_p: float
) -> None:
    # Distinct logits with no share on the border of p, where rounding would decide.
    values = [value / 8 + i / 1000 for i, value in enumerate(logits)]
    expected = probabilities(values, temperature, top_k, top_p)
    found = frequencies(values, temperature, top_k, top_p)
    assert np.abs(found - expected).max() < 5e-4


def test_temperature_zero_takes_the_most_likely() -> None:
    logits = torch.tensor([[0.1, 3.0, -1.0], [2.0, 1.0, 0.0]])
    assert draw_sub_token(logits, torch.tensor([0.99, 0.99]), 0.0, 0, 1.0).tolist() == [1, 0]
    assert frequencies([0.1, 3.0, -1.0], 1.0, 1, 1.0).tolist() == [0, 1, 0]


@pytest.mark.parametrize("settings", [(1.0, 0, 1.0), (1.0, 3, 1.0), (1.0, 0, 0.9)])
def test_what_has_no_probability_never_comes(settings: tuple[float, int, float]) -> None:
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf])
    edges = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    assert set(draw_sub_token(logits.expand(2, -1), edges, *settings).tolist()) == {1, 2}


def test_settings_are_one_value_or_one_per_sub_token() -> None:
    config = parse(SamplingConfig, {"temperature": [1.1, 0.9], "top_k": 5})
    assert config.per_sub_token(2) == [(1.1, 5, 1.0), (0.9, 5, 1.0)]
    with pytest.raises(InputError, match="temperature has 2 values, the codes 3 sub-tokens"):
        config.per_sub_token(3)
    with pytest.raises(InputError, match="top_p"):
        parse(SamplingConfig, {"top_p": 1.5})
