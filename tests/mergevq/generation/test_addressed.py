"""A sample is a function of (seed, its number): who else is in the batch changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mergevq.generation import GuidanceConfig, SamplingConfig

KINDS = ("raster", "mergear", "random_order")
SAMPLING = SamplingConfig(temperature=1.3, top_k=(0, 12), top_p=(1.0, 0.95))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [{}, {"scale": 1.8, "schedule": "linear"}])
def test_batches_of_any_size_and_order_give_the_same_samples_in_float64(
    random_generator: Callable, generate: Callable, kind: str, guidance: dict
) -> None:
    generator = random_generator(kind, spread=0.3)
    labels, ids = torch.arange(12) % 3, torch.arange(100, 112)
    options = {"sampling": SAMPLING, "guidance": GuidanceConfig(**guidance), "seed": 5}
    if kind == "random_order":
        options["steps"] = 6
    whole = generate(generator, labels, sample_ids=ids, **options).indices
    assert len({tuple(row) for row in whole.tolist()}) == 12
    for size in (1, 5):
        parts = [
            generate(generator, labels[a : a + size], sample_ids=ids[a : a + size], **options).indices
            for a in range(0, 12, size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    mixed = torch.tensor([7, 0, 11])
    assert torch.equal(
        generate(generator, labels[mixed], sample_ids=ids[mixed], **options).indices, whole[mixed]
    )
    other = generate(generator, labels, sample_ids=ids, **{**options, "seed": 6}).indices
    assert not torch.equal(other, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_leaves_the_global_random_numbers_alone(
    random_generator: Callable, generate: Callable, kind: str
) -> None:
    generator = random_generator(kind)
    before = torch.random.get_rng_state()
    generate(generator, torch.tensor([0, 1]))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_samples_follow_the_models_probabilities(random_generator: Callable, generate: Callable) -> None:
    """The first cell of 3,000 samples against the forward's distribution."""
    generator = random_generator("raster", {"transformer": {"depth": 1}}, spread=0.1)
    labels = torch.full((3000,), 1)
    prediction = generator(torch.zeros(1, 16, dtype=torch.int64), None, labels[:1], None)
    expected = prediction.logits[0][0, 0].softmax(-1)
    first = generator.tokens.split(generate(generator, labels).indices[:, 0])[:, 0]
    found = torch.bincount(first, minlength=4) / 3000
    assert expected.max() < 0.95, "a sure thing would prove nothing"
    assert (found - expected).abs().max() < 4 * 0.5 / 3000**0.5
