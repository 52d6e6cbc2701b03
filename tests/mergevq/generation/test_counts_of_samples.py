"""Samples of different kept counts: each as if it were alone, and counts drawn from the histogram of what was learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergevq.errors import InputError
from mergevq.generation import GuidanceConfig, SamplingConfig, sample
from mergevq.generation.counts import draw_counts, mean_count, tilt
from mergevq.serialization import load_generator, save_generator

GREEDY = SamplingConfig(temperature=0.0)
LABELS = torch.tensor([0, 1, 2, -1, 1])
COUNTS = torch.tensor([9, 4, 16, 4, 9])
KEEPS = (4, 9, 16)
HISTOGRAM = torch.tensor([[30, 10, 0], [0, 5, 5], [0, 0, 0], [2, 0, 0]])


def forward_codes(generator, indices: Tensor, order: Tensor | None = None) -> Tensor:  # type: ignore[no-untyped-def]
    """The most likely codes, each given the true ones before it, and -1 where there is no target."""
    prediction = generator(indices, None, LABELS, COUNTS, order)
    best = torch.stack([logits.argmax(-1) for logits in prediction.logits], -1)
    codes = generator.tokens.join(best)
    return codes if prediction.present is None else codes.where(prediction.present, -1)


@pytest.mark.parametrize(("compress", "dtype"), [(True, torch.float32), (False, torch.float64)])
def test_greedy_mergear_of_many_counts_equals_the_teacher_forced_forward(
    random_generator: Callable, generate: Callable, compress: bool, dtype: torch.dtype
) -> None:
    generator = random_generator("mergear").to(dtype)
    made = generate(generator, LABELS, keep=COUNTS, sampling=GREEDY, compress=compress)
    assert made.indices.shape == (5, 16)
    assert torch.equal(forward_codes(generator, made.indices), made.indices)
    same = generate(generator, LABELS, keep=9, sampling=GREEDY, compress=compress)
    assert not torch.equal(same.indices, made.indices), "the kept count means something"


@pytest.mark.parametrize("positions", ["rank", "stretched"])
def test_greedy_random_order_of_many_counts_equals_the_teacher_forced_forward(
    random_generator: Callable, generate: Callable, positions: str
) -> None:
    generator = random_generator("random_order", {"positions": positions})
    order = torch.stack(
        [torch.cat([torch.randperm(keep), torch.arange(keep, 16)]) for keep in COUNTS.tolist()]
    )
    made = generate(generator, LABELS, keep=COUNTS, sampling=GREEDY, order=order)
    assert (made.indices >= 0).sum(1).tolist() == COUNTS.tolist()
    assert made.steps == 16
    found = forward_codes(generator, made.indices, order)
    wanted = made.indices.gather(1, order)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ["mergear", "random_order"])
def test_a_sample_is_what_it_is_alone(random_generator: Callable, generate: Callable, kind: str) -> None:
    generator, config = random_generator(kind), GuidanceConfig(scale=2.0, schedule="linear")
    steps = 6 if kind == "random_order" else None  # more than the fewest tokens
    made = generate(generator, LABELS, keep=COUNTS, guidance=config, steps=steps).indices
    for row, keep in list(enumerate(COUNTS.tolist()))[:3]:
        alone = generate(
            generator,
            LABELS[row : row + 1],
            keep=keep,
            sample_ids=torch.tensor([row]),
            guidance=config,
            steps=steps and min(steps, keep),
        ).indices
        width = keep if kind == "random_order" else 16
        assert torch.equal(made[row, :width], alone[0])
        assert made.shape[1] == width or kind == "mergear" or set(made[row, width:].tolist()) <= {-1}


def test_no_more_different_codes_than_each_image_keeps(
    random_generator: Callable, generate: Callable
) -> None:
    generator = random_generator("mergear", spread=0.2)
    for compress in (True, False):
        made = generate(generator, LABELS, keep=COUNTS, limit_distinct=True, compress=compress).indices
        different = [len(set(row)) for row in made.tolist()]
        assert all(few <= keep for few, keep in zip(different, COUNTS.tolist(), strict=True))
        assert max(different) > 4


def drawn(labels: Tensor, ids: Tensor, **options: float) -> Tensor:
    return draw_counts(HISTOGRAM, KEEPS, labels, sample_ids=ids, seed=5, **options)  # type: ignore[arg-type]


def test_a_count_is_a_function_of_seed_sample_and_class_alone() -> None:
    ids = torch.arange(40)
    labels = ids % 3
    whole = drawn(labels, ids)
    shuffled = torch.randperm(40)
    assert torch.equal(drawn(labels[shuffled], ids[shuffled]), whole[shuffled])
    assert torch.equal(drawn(labels[7:8], ids[7:8]), whole[7:8])


def test_counts_come_as_often_as_in_the_class_and_of_all_where_there_is_none() -> None:
    ids = torch.arange(4000)

    def shares(label: int) -> list[float]:
        counts = drawn(torch.full((4000,), label), ids)
        return [float((counts == keep).float().mean()) for keep in KEEPS]

    overall = (HISTOGRAM.sum(0) / HISTOGRAM.sum()).tolist()
    for label, wanted in ((0, [0.75, 0.25, 0.0]), (1, [0.0, 0.5, 0.5]), (2, overall), (-1, overall)):
        assert shares(label) == pytest.approx(wanted, abs=0.035)
    assert shares(0)[2] == 0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=3, max_size=3), st.floats(0.01, 0.99))
def test_a_tilted_histogram_has_the_mean_that_is_asked_for(images: list[int], share: float) -> None:
    overall, counts = torch.tensor(images).double(), torch.tensor(KEEPS).double()
    present = [keep for keep, number in zip(KEEPS, images, strict=True) if number]
    if len(present) < 2:
        return
    budget = present[0] + share * (present[-1] - present[0])
    tilted = overall * tilt(overall, KEEPS, budget)
    assert float((tilted * counts).sum() / tilted.sum()) == pytest.approx(budget, rel=1e-6)
    assert [bool(weight) for weight in tilted] == [number > 0 for number in images]


def test_the_mean_of_what_was_learnt_tilts_nothing_and_one_beyond_is_refused() -> None:
    mean = mean_count(HISTOGRAM, KEEPS)
    ids = torch.arange(50)
    assert torch.equal(drawn(ids % 3, ids, budget=mean), drawn(ids % 3, ids))
    for budget in (4.0, 16.5):
        with pytest.raises(InputError, match=f"budget is {budget:g}: the images .* keep 4 to 16 tokens"):
            drawn(ids % 3, ids, budget=budget)


def test_a_ragged_generator_draws_its_counts_and_carries_them_with_it(
    random_generator: Callable, tmp_path: Path
) -> None:
    generator = random_generator("random_order", {"ragged": True}).float()
    ids = torch.arange(5)
    with pytest.raises(InputError, match="holds no histogram of kept counts: give keep"):
        sample(generator, LABELS, sample_ids=ids, seed=5)
    generator.count_histogram.copy_(HISTOGRAM)
    save_generator(generator, tmp_path / "generator")
    loaded = load_generator(tmp_path / "generator")
    for model in (generator, loaded):
        made = sample(model, LABELS, sample_ids=ids, seed=5).indices
        assert torch.equal((made >= 0).sum(1), drawn(LABELS, ids))
    assert sample(loaded, LABELS, keep=9, sample_ids=ids, seed=5).indices.shape == (5, 9)
    nothing = sample(loaded, LABELS[:0], sample_ids=ids[:0], seed=5)
    assert len(nothing.indices) == 0


def test_counts_that_were_not_trained_or_not_for_every_sample_are_refused(
    random_generator: Callable, generate: Callable
) -> None:
    generator = random_generator("mergear")
    with pytest.raises(InputError, match="keep is 5: this generator was trained with 4, 9, 16"):
        generate(generator, LABELS, keep=[4, 5, 9, 9, 9])
    with pytest.raises(InputError, match="steps is 17: there are 16 tokens"):
        generate(random_generator("random_order"), LABELS, keep=COUNTS, steps=17)
    with pytest.raises(InputError, match="keep has 2 numbers for 5 images"):
        generate(generator, LABELS, keep=[4, 9])
