"""The deal: what every pass holds, who takes it, and that neither depends on who is there."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergevq.errors import InputError
from mergevq_platform.data import BatchPartition


@st.composite
def deals(draw: st.DrawFn) -> tuple[BatchPartition, int, int]:
    """(a deal, the micro-batch it was made for, its fewest ranks)"""
    workers = draw(st.integers(1, 9))
    least = draw(st.integers(1, workers))
    global_batch = draw(st.integers(workers, 120))
    micro_batch = draw(st.integers(1, 40))
    try:
        return BatchPartition.of(global_batch, micro_batch, workers, least), micro_batch, least
    except InputError as error:
        enough = int(str(error).rpartition(" ")[2])
        return BatchPartition.of(global_batch, enough, workers, least), enough, least


def held(partition: BatchPartition, number: int, rank: int, world_size: int, *piece: int) -> list[int]:
    return list(
        chain.from_iterable(range(*run) for run in partition.positions(number, rank, world_size, *piece))
    )


@settings(deadline=None)
@given(deals())
def test_every_position_is_dealt_once_whatever_the_number_of_ranks(
    dealt: tuple[BatchPartition, int, int],
) -> None:
    partition, _, _ = dealt
    passes = [held(partition, number, 0, 1) for number in range(partition.passes)]
    assert sorted(chain.from_iterable(passes)) == list(range(partition.global_batch))
    for world_size in range(1, partition.workers + 1):
        for number, whole in enumerate(passes):
            shares = [held(partition, number, rank, world_size) for rank in range(world_size)]
            assert list(chain.from_iterable(shares)) == whole


@settings(deadline=None)
@given(deals())
def test_every_rank_takes_part_in_every_pass_with_at_most_a_micro_batch(
    dealt: tuple[BatchPartition, int, int],
) -> None:
    partition, micro_batch, least = dealt
    for world_size in range(least, partition.workers + 1):
        for number in range(partition.passes):
            counts = [len(held(partition, number, rank, world_size)) for rank in range(world_size)]
            assert 1 <= min(counts) <= max(counts) <= micro_batch
            assert max(counts) - min(counts) <= 1


@settings(deadline=None)
@given(deals(), st.integers(1, 4))
def test_pieces_make_up_a_share(dealt: tuple[BatchPartition, int, int], parts: int) -> None:
    partition, _, _ = dealt
    pieces = [held(partition, 0, 0, 1, part, parts) for part in range(parts)]
    assert list(chain.from_iterable(pieces)) == held(partition, 0, 0, 1)


def test_an_even_deal_gives_every_rank_a_block_of_neighbours() -> None:
    partition = BatchPartition.of(24, 3, workers=4)
    assert partition.passes == 2
    assert [partition.positions(number, 2, 4) for number in (0, 1)] == [[(12, 15)], [(15, 18)]]


def test_passes_too_small_for_all_workers_are_refused_with_the_fix() -> None:
    with pytest.raises(
        InputError,
        match=r"micro_batch 1 cuts global_batch 8 into 8 passes.*4 workers: raise micro_batch to 4",
    ):
        BatchPartition.of(8, 1, workers=4, least=1)
    assert BatchPartition.of(8, 4, workers=4, least=1).passes == 2
