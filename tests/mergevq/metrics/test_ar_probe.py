"""The AR probe: its likelihood is that of the codes, its settings are frozen, its samples are addressed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq.metrics.ar_probe import (
    AR_PROBES,
    code_bits,
    fit_ar_probe,
    sample_ar_probe,
    untrained_ar_probe,
)
from mergevq.ragged import token_counts

V1 = AR_PROBES["ar_probe_v1"]
SMALL = replace(V1, depth=1, width=32, heads=2, hidden=32, steps=120, batch=32, warmup_steps=10)
BITS, TOKENS = 4, 6


def codes(rows: int, seed: int = 0) -> torch.Tensor:
    """Uniform codes (rows, TOKENS): nothing about them can be known."""
    return torch.randint(2**BITS, (rows, TOKENS), generator=torch.Generator().manual_seed(seed))


def test_the_settings_of_v1_are_those_that_numbers_of_before_were_measured_with() -> None:
    assert to_tree(V1) == {
        "depth": 3,
        "width": 128,
        "heads": 4,
        "hidden": 256,
        "intra_depth": 1,
        "most_sub_bits": 9,
        "steps": 300,
        "batch": 64,
        "learning_rate": 3e-3,
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        "warmup_steps": 30,
        "final_fraction": 0.05,
        "train_images": 6000,
        "samples": 1000,
        "seed": 0,
    }


@given(bits=st.integers(1, 24))
def test_a_code_is_split_into_the_fewest_nearly_equal_parts(bits: int) -> None:
    parts = V1.split(bits)
    assert sum(parts) == bits
    assert len(parts) == math.ceil(bits / 9)
    assert max(parts) - min(parts) <= 1


@settings(max_examples=5, deadline=None)
@given(bits=st.integers(1, 18), tokens=st.integers(1, 9))
def test_an_untrained_probe_needs_every_bit(bits: int, tokens: int) -> None:
    indices = torch.randint(2**bits, (3, tokens))
    found = code_bits(untrained_ar_probe(SMALL, bits=bits, tokens=tokens), indices)
    assert found.tolist() == pytest.approx([bits * tokens] * 3, rel=1e-6)


def test_the_bits_are_the_entropy_of_codes_that_repeat_the_first() -> None:
    def repeated(rows: int, seed: int) -> torch.Tensor:
        return codes(rows, seed)[:, :1].expand(-1, TOKENS)

    probe = fit_ar_probe(repeated(2048, 1), bits=BITS, settings=replace(SMALL, learning_rate=1e-2))
    assert BITS - 0.05 < float(code_bits(probe, repeated(512, 2)).mean()) < BITS + 0.5


def test_uniform_codes_of_held_out_images_stay_as_expensive_as_they_are() -> None:
    probe = fit_ar_probe(codes(2048, 1), bits=BITS, settings=replace(SMALL, steps=40))
    assert float(code_bits(probe, codes(512, 2)).mean()) > BITS * TOKENS - 0.01


def test_padding_costs_nothing_and_changes_nothing_before_it() -> None:
    probe = fit_ar_probe(codes(64), bits=BITS, settings=replace(SMALL, steps=5))
    whole = codes(4, 3)
    for count in range(1, TOKENS):
        padded = whole.clone()
        padded[:, count:] = -1
        assert torch.allclose(code_bits(probe, padded), code_bits(probe, whole[:, :count]), rtol=1e-5)


def test_a_probe_of_ragged_codes_samples_the_counts_of_its_training_images() -> None:
    counts = torch.tensor([2, 5, 5, 6] * 16)
    ragged = codes(64).masked_fill(torch.arange(TOKENS) >= counts[:, None], -1)
    probe = fit_ar_probe(ragged, bits=BITS, settings=replace(SMALL, steps=5))
    sampled = sample_ar_probe(probe, torch.arange(200), seed=0, counts=token_counts(ragged))
    found = token_counts(sampled)
    assert set(found.tolist()) == {2, 5, 6}
    assert 0.4 < float((found == 5).float().mean()) < 0.6
    assert torch.equal(sampled == -1, torch.arange(TOKENS) >= found[:, None])


def test_sample_i_is_a_function_of_seed_and_i_alone() -> None:
    probe = untrained_ar_probe(SMALL, bits=BITS, tokens=TOKENS)
    together = sample_ar_probe(probe, torch.arange(8), seed=3)
    apart = torch.cat([sample_ar_probe(probe, torch.arange(start, start + 4), seed=3) for start in (0, 4)])
    assert torch.equal(together, apart)
    assert not torch.equal(together, sample_ar_probe(probe, torch.arange(8), seed=4))


def test_a_fit_repeats_without_gradients_around_it_and_leaves_random_numbers_alone() -> None:
    few = replace(SMALL, steps=3)
    torch.manual_seed(5)
    first = fit_ar_probe(codes(64), bits=BITS, settings=few)
    with torch.inference_mode():
        second = fit_ar_probe(codes(64), bits=BITS, settings=few)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_fewer_images_than_a_batch_are_named() -> None:
    with pytest.raises(InputError, match="batches of 32 images, here are 7"):
        fit_ar_probe(codes(7), bits=BITS, settings=SMALL)
