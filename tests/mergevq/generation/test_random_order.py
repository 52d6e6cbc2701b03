"""Random order: the schedule, parallel queries that see what is decoded and themselves, given orders, in-painting."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mergevq.errors import InputError
from mergevq.generation import GuidanceConfig, SamplingConfig, arccos_schedule

GREEDY = SamplingConfig(temperature=0.0)
LABELS = torch.tensor([0, 1, 2, -1])


def orders(batch: int = 4, keep: int = 9, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(keep, generator=random) for _ in range(batch)])


@pytest.mark.parametrize(("tokens", "steps"), [(144, 64), (256, 88)])
def test_the_published_step_counts_follow_the_arccosine(tokens: int, steps: int) -> None:
    counts = arccos_schedule(tokens, steps)
    assert (len(counts), sum(counts), min(counts)) == (steps, tokens, 1)
    assert counts == sorted(counts) or all(
        abs(a - b) <= 1 for a, b in zip(counts, sorted(counts), strict=True)
    )
    done = 0
    for step, count in enumerate(counts):
        done += count
        goal = min(tokens, int(tokens * (1 - math.cos(math.pi / 2 * (step + 1) / steps))) + 1)
        # At least one a step: the schedule may run ahead of the curve at first, never behind it.
        assert done == max(goal, step + 1)


@given(st.integers(1, 300), st.data())
def test_any_schedule_decodes_each_token_once_in_exactly_its_steps(tokens: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, tokens))
    counts = arccos_schedule(tokens, steps)
    assert (len(counts), sum(counts)) == (steps, tokens)
    assert min(counts) >= 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keeps": [9], "positions": "stretched"},
        {"split": [2, 2, 2], "transformer": {"prefix_rotation": "zero"}},
    ],
)
def test_greedy_decoding_one_by_one_equals_the_teacher_forced_forward(
    random_generator: Callable, generate: Callable, changes: dict, dtype: torch.dtype
) -> None:
    generator, order = random_generator("random_order", changes).to(dtype), orders()
    made = generate(generator, LABELS, sampling=GREEDY, order=order)
    assert made.steps == 9
    assert made.indices.unique().numel() > 3, "a constant would prove nothing"
    prediction = generator(made.indices, None, LABELS, 9, order)
    best = torch.stack([logits.argmax(-1) for logits in prediction.logits], -1)
    assert torch.equal(generator.tokens.join(best), prediction.targets)


def by_hand(generator, order: Tensor, counts: list[int], config: GuidanceConfig) -> Tensor:  # type: ignore[no-untyped-def]
    """Greedy codes where each query of a step is asked in a sequence of its own: all decoded pairs, then it."""
    codes, done = torch.zeros(order.shape, dtype=torch.int64), 0
    for count in counts:
        found = []
        for i in range(done, done + count):
            asked = torch.cat([order[:, :done], order[:, i, None], order[:, done:i], order[:, i + 1 :]], 1)
            # The codes that were not decoded yet come after the query, which cannot see them.
            conditional = generator(codes, None, LABELS, 9, asked)
            unconditional = generator(codes, None, torch.full_like(LABELS, -1), 9, asked)
            parts: list[Tensor] = []
            for j in range(2):
                if j:  # what follows depends on the sub-token just found
                    trial = codes.scatter(1, order[:, i, None], parts[0][:, None])
                    conditional = generator(trial, None, LABELS, 9, asked)
                    unconditional = generator(trial, None, torch.full_like(LABELS, -1), 9, asked)
                scale = config.scales(done / 9, 2)[j]
                c, u = (p.logits[j][:, done] for p in (conditional, unconditional))
                parts.append((u + scale * (c - u)).argmax(-1))
            found.append(generator.tokens.join(torch.stack(parts, -1)))
        codes.scatter_(1, order[:, done : done + count], torch.stack(found, 1))
        done += count
    return codes


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize(
    "guidance", [{}, {"scale": 3.0, "schedule": "linear"}, {"scale": 2.0, "interval": (0.2, 0.6)}]
)
@pytest.mark.parametrize("bucket", [1, 64])
def test_parallel_queries_see_all_that_is_decoded_and_themselves(
    random_generator: Callable, generate: Callable, steps: int, guidance: dict, bucket: int
) -> None:
    generator, order, config = random_generator("random_order"), orders(), GuidanceConfig(**guidance)
    generator.compiled = bucket > 1  # pads its steps, compiled or not
    made = generate(generator, LABELS, sampling=GREEDY, order=order, steps=steps, guidance=config)
    assert made.steps == steps
    assert torch.equal(made.indices, by_hand(generator, order, arccos_schedule(9, steps), config))


def test_orders_are_fresh_for_every_sample_and_belong_to_it(
    random_generator: Callable, generate: Callable
) -> None:
    generator = random_generator("random_order")
    same = torch.zeros(6, dtype=torch.int64)
    made = generate(generator, same, sampling=GREEDY).indices
    assert len({tuple(row) for row in made.tolist()}) > 1, (
        "greedy samples of a class differ by their order alone"
    )
    again = generate(generator, same[:2], sampling=GREEDY, sample_ids=torch.tensor([4, 1])).indices
    assert torch.equal(again, made[[4, 1]])


def test_training_draws_a_fresh_permutation_per_sample_and_predicts_all_codes_in_it(
    random_generator: Callable,
) -> None:
    generator = random_generator("random_order")
    codes = torch.arange(9).expand(6, -1)
    torch.manual_seed(1)
    first, second = (generator(codes, None, torch.zeros(6, dtype=torch.int64), 9).targets for _ in range(2))
    assert torch.equal(first.sort(1).values, codes)
    assert len({tuple(row) for row in torch.cat([first, second]).tolist()}) == 12


def test_a_prediction_depends_on_its_place_and_on_earlier_codes_in_the_order_alone(
    random_generator: Callable,
) -> None:
    generator, order = random_generator("random_order"), orders()
    codes = torch.randint(0, 64, (4, 9), generator=torch.Generator().manual_seed(3))
    before = generator(codes, None, LABELS, 9, order).logits[0]
    for place in range(9):
        changed = codes.scatter(1, order[:, place, None], (codes.gather(1, order[:, place, None]) + 7) % 64)
        after = generator(changed, None, LABELS, 9, order).logits[0]
        torch.testing.assert_close(after[:, : place + 1], before[:, : place + 1])
        if place < 8:
            assert (after[:, place + 1] - before[:, place + 1]).abs().max() > 1e-6
    swapped = order.clone()
    swapped[:, [7, 8]] = order[:, [8, 7]]
    other = generator(codes, None, LABELS, 9, swapped).logits[0]
    torch.testing.assert_close(other[:, :7], before[:, :7])
    assert (other[:, 7] - before[:, 7]).abs().max() > 1e-6, "the place asked for matters"


def test_fixed_codes_stay_and_the_others_follow_from_them(
    random_generator: Callable, generate: Callable
) -> None:
    generator, order = random_generator("random_order"), orders()
    whole = generate(generator, LABELS, sampling=GREEDY, order=order).indices
    mask = torch.zeros(4, 9, dtype=torch.bool)
    for row, count in enumerate([0, 3, 3, 9]):  # rows may fix differently many
        mask[row, order[row, :count]] = True
    made = generate(generator, LABELS, sampling=GREEDY, order=order, fixed=whole, fixed_mask=mask)
    assert torch.equal(made.indices, whole), "what was decoded first, given instead"
    other = torch.where(mask, (whole + 1) % 64, 0)
    changed = generate(generator, LABELS, sampling=GREEDY, order=order, fixed=other, fixed_mask=mask).indices
    assert torch.equal(changed[mask], other[mask])
    assert not torch.equal(changed[1:3][~mask[1:3]], whole[1:3][~mask[1:3]])
    alone = generate(
        generator,
        LABELS[1:2],
        sampling=GREEDY,
        order=order[1:2],
        fixed=other[1:2],
        fixed_mask=mask[1:2],
        guidance=GuidanceConfig(scale=2.0),
    )
    together = generate(
        generator,
        LABELS,
        sampling=GREEDY,
        order=order,
        fixed=other,
        fixed_mask=mask,
        guidance=GuidanceConfig(scale=2.0),
    )
    assert torch.equal(alone.indices[0], together.indices[1])


def test_places_stand_on_a_grid_of_the_root_of_the_kept_count(random_generator: Callable) -> None:
    generator = random_generator("random_order", {"keeps": [9, 7, 4], "transformer": {"rope_base": 50.0}})
    nine, seven, four = (generator.kept_rotation(keep) for keep in (9, 7, 4))
    assert torch.equal(seven, nine[:7]), "7 tokens fill the 3 x 3 grid's first places"
    assert torch.equal(four, nine[[0, 1, 3, 4]])
    stretched = random_generator("random_order", {"keeps": [4, 16], "positions": "stretched"})
    assert torch.equal(stretched.kept_rotation(4), stretched.kept_rotation(16)[[0, 2, 8, 10]])


def test_bad_requests_are_answered_with_the_fix(random_generator: Callable, generate: Callable) -> None:
    generator = random_generator("random_order")
    with pytest.raises(InputError, match="steps is 10: there are 9 tokens to decode, ask for 1 to 9"):
        generate(generator, LABELS, steps=10)
    with pytest.raises(InputError, match="keep is 5: this generator was trained with 4, 9, 16"):
        generate(generator, LABELS, keep=5)
    with pytest.raises(InputError, match="class 3 is out of range: this generator knows 0 to 2"):
        generate(generator, torch.tensor([0, 3]))
    with pytest.raises(InputError, match="order must hold each of 0 to 8 once"):
        generate(generator, LABELS, order=torch.zeros(4, 9, dtype=torch.int64))
    with pytest.raises(InputError, match=r"order is \(2, 9\): it must be \(4, 9\)"):
        generate(generator, LABELS, order=orders(2))
    with pytest.raises(InputError, match="need both fixed and fixed_mask"):
        generate(generator, LABELS, fixed=orders())
    with pytest.raises(InputError, match="limit_distinct belongs to mergear"):
        generate(generator, LABELS, limit_distinct=True)
    raster = random_generator("raster")
    with pytest.raises(InputError, match="order belongs to random_order"):
        generate(raster, LABELS, order=orders())
    with pytest.raises(InputError, match="leave keep out"):
        generate(raster, LABELS, keep=9)
    with pytest.raises(InputError, match="steps is 4: raster decodes its 16 cells one by one"):
        generate(raster, LABELS, steps=4)
