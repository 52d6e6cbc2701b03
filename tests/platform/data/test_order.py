"""The order of samples: every property that training relies on, over many shapes of data."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergevq.errors import InputError
from mergevq_platform.data import SampleOrder
from mergevq_platform.data.order import ROWS_IN_FLIGHT

group_sizes = st.lists(st.integers(0, 12), min_size=1, max_size=60).filter(lambda sizes: sum(sizes) > 0)


@st.composite
def orders(draw: st.DrawFn) -> SampleOrder:
    sizes = draw(group_sizes)
    batch = draw(st.integers(1, min(40, sum(sizes))))
    return SampleOrder(sizes, batch, draw(st.integers(0, 5)), draw(st.integers(1, 20)))


def imagenet(rows_per_group: int = 128, global_batch: int = 256) -> SampleOrder:
    full, rest = divmod(1_281_167, rows_per_group)
    return SampleOrder([rows_per_group] * full + [rest], global_batch, seed=0)


@given(order=orders(), epoch=st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_an_epoch_visits_every_row_at_most_once_and_leaves_out_less_than_a_batch(
    order: SampleOrder, epoch: int
) -> None:
    seen = np.concatenate([order.batch(epoch, step) for step in range(order.steps_per_epoch)])
    assert len(seen) == len(set(seen.tolist())) == order.steps_per_epoch * order.global_batch
    assert order.rows - len(seen) < order.global_batch
    assert set(seen.tolist()) <= set(range(order.rows))


@given(order=orders(), data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_cut_of_a_batch_joins_to_the_batch_wherever_one_starts(
    order: SampleOrder, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, order.steps_per_epoch - 1))
    cuts = sorted(data.draw(st.lists(st.integers(0, order.global_batch), max_size=4)))
    edges = [0, *cuts, order.global_batch]
    for before in range(step):
        order.batch(2, before)  # a reader that came all the way
    whole = order.batch(2, step)
    fresh = SampleOrder(order.sizes, order.global_batch, order.seed, order.window_blocks * order.lanes)
    pieces = [fresh.batch(2, step, a, b) for a, b in pairwise(edges)]
    assert np.concatenate(pieces).tolist() == whole.tolist()


@given(order=orders(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_groups_that_are_still_needed_are_called_live(order: SampleOrder, data: st.DataObject) -> None:
    if order.steps_per_epoch < 2:
        return
    start = data.draw(st.integers(0, order.global_batch - 1))
    stop = data.draw(st.integers(start + 1, order.global_batch))
    starts = np.cumsum(order.sizes) - order.sizes
    held: set[int] = set()
    reads: list[int] = []
    for step in range(order.steps_per_epoch):
        groups = set((np.searchsorted(starts, order.batch(0, step, start, stop), side="right") - 1).tolist())
        reads += sorted(groups - held)
        held = (held | groups) & order.live_groups(0, step, start, stop)
        assert len(held) <= order.lanes * order.window_blocks
    # A lane may share the group at each of its ends with its neighbours; nothing else is read twice.
    assert len(reads) <= len(set(reads)) + order.lanes


def test_seed_and_epoch_change_the_order_and_nothing_else_does() -> None:
    sizes = [32] * 50
    batches = {
        (seed, epoch): SampleOrder(sizes, 64, seed).batch(epoch, 3).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({tuple(batch) for batch in batches.values()}) == 4
    assert batches[1, 1] == SampleOrder(sizes, 64, 1).batch(1, 3).tolist()


def test_the_order_stays_what_it_was_when_runs_began() -> None:
    # A change here breaks the exact resume of every run in the world: do it knowingly, if ever.
    order = SampleOrder([8] * 12, 6, seed=7, window_blocks=4)
    assert order.lanes == 3
    assert order.batch(0, 0).tolist() == [94, 95, 52, 54, 71, 3]
    assert order.batch(5, 11).tolist() == [31, 29, 55, 54, 47, 42]


@pytest.mark.parametrize("readers", [1, 8, 64])
@pytest.mark.parametrize("rows_per_group", [100, 128, 256])
def test_read_amplification_on_imagenet_is_near_one_at_any_usual_worker_count(
    readers: int, rows_per_group: int
) -> None:
    amplification = imagenet(rows_per_group).read_amplification(readers)
    assert 1 <= amplification <= 1.05


def test_read_amplification_counts_the_ranks_that_share_a_lane() -> None:
    order = SampleOrder([100] * 16, 64, seed=0)
    assert order.lanes == 4
    assert order.read_amplification(8) == pytest.approx(2 * order.read_amplification(4))


@given(order=orders(), readers=st.integers(1, 64))
@settings(max_examples=80, deadline=None)
def test_read_amplification_is_bounded_for_any_data(order: SampleOrder, readers: int) -> None:
    sharing = 1 + (readers - 1) / order.lanes
    ends = 1 + 2 * order.lanes / max(1, np.count_nonzero(order.sizes))
    empty = order.sizes.size / max(1, np.count_nonzero(order.sizes))
    assert order.read_amplification(readers) <= sharing * ends * empty * 2


def test_what_one_worker_holds_in_memory_is_bounded() -> None:
    for rows in (100, 128, 256, 1000, 5000):
        order = imagenet(rows)
        assert order.lanes * order.window_blocks * rows <= max(2 * ROWS_IN_FLIGHT, 16 * rows)


def test_a_batch_mixes_images_from_all_over_sorted_data() -> None:
    order = imagenet()
    first, second = order.batch(0, 10), order.batch(0, 11)
    thirds = np.histogram(first, bins=3, range=(0, order.rows))[0]
    assert thirds.min() > 50
    # ImageNet's classes have about 1,300 rows each: a batch of 256 drawn at random has about 226 of the 1,000.
    assert len(set((first // 1282).tolist())) > 100
    assert not set(first.tolist()) & set(second.tolist())


def test_the_windows_shuffle_inside_of_row_groups() -> None:
    order = SampleOrder([1000] * 4, 10, seed=0, window_blocks=2)
    rows = np.concatenate([order.batch(0, step) for step in range(order.steps_per_epoch)])
    steps = np.diff(rows)
    assert np.mean(np.abs(steps) == 1) < 0.01


def test_random_access_costs_the_window_and_not_the_epoch() -> None:
    order = imagenet()
    order.batch(0, 0)
    began = time.process_time()
    for step in range(100, 5000, 490):
        order.batch(0, step)
    assert time.process_time() - began < 1.0


def test_data_smaller_than_a_batch_is_refused_with_the_fix() -> None:
    with pytest.raises(InputError, match=r"5 images, fewer than global_batch 8: lower global_batch"):
        SampleOrder([5], 8)
