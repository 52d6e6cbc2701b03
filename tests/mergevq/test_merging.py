"""Merging as maths: groups keep their mean, sizes their sum, and the source is a partition of the cells."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mergevq import merging


def tokens(batch: int, count: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(
        batch, count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@settings(max_examples=40, deadline=None)
@given(count=st.integers(3, 40), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_unmerge_restores_group_means(count: int, share: float, seed: int) -> None:
    r = int(share * ((count - 1) // 2))
    x = tokens(2, count, 5, seed)
    size = tokens(2, count, 1, seed + 1)[..., 0].abs() + 0.5
    chosen = merging.match(x, r)
    merged, merged_size = merging.merge(chosen, x, size)
    slots = merging.slots(chosen, count)
    assert merged.shape == (2, count - r, 5)
    torch.testing.assert_close(merged_size.sum(1), size.sum(1))
    back = merging.unmerge(merged, slots)
    for b in range(2):
        for slot in slots[b].unique():
            inside = slots[b] == slot
            mean = (x[b, inside] * size[b, inside, None]).sum(0) / size[b, inside].sum()
            torch.testing.assert_close(back[b, inside], mean.expand(int(inside.sum()), -1))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(3, 40), seed=st.integers(0, 1000))
def test_the_first_token_is_never_merged_and_every_slot_is_used(count: int, seed: int) -> None:
    r = (count - 1) // 2
    slots = merging.slots(merging.match(tokens(3, count, 4, seed), r), count)
    assert (slots[:, 0] == 0).all()
    assert ((slots == 0).sum(1) == 1).all(), "[CLS] is no destination either"
    for row in slots:
        assert row.unique().tolist() == list(range(count - r))


def test_the_most_similar_pairs_are_taken() -> None:
    x = torch.eye(8, dtype=torch.float64)[None]
    x[0, 4] = x[0, 5]
    x[0, 6] = x[0, 1]
    slots = merging.slots(merging.match(x, 2), 8)[0]
    assert slots[4] == slots[5]
    assert slots[6] == slots[1]
    assert slots.unique().numel() == 6


@settings(max_examples=40, deadline=None)
@given(cells=st.integers(1, 30), kept=st.integers(1, 30), seed=st.integers(0, 1000))
def test_canonical_order_is_by_first_raster_cell(cells: int, kept: int, seed: int) -> None:
    kept = min(kept, cells)
    generator = torch.Generator().manual_seed(seed)
    # Every slot gets a cell: a random surjection.
    assignment = torch.cat([torch.arange(kept), torch.randint(0, kept, (cells - kept,), generator=generator)])
    assignment = assignment[torch.randperm(cells, generator=generator)][None]
    values = torch.arange(kept, dtype=torch.float64)[None, :, None]
    ordered, source = merging.canonical(values, assignment)
    first = [int((source.assignment[0] == slot).nonzero()[0]) for slot in range(kept)]
    assert first == sorted(first)
    assert torch.equal(merging.unmerge(ordered, source.assignment), merging.unmerge(values, assignment))


def test_the_matrix_is_the_source_as_the_paper_writes_it() -> None:
    source = merging.Source(torch.tensor([[0, 1, 0, 2]]), torch.tensor([[2.0, 1.0, 1.0]]))
    matrix = source.matrix()
    assert matrix.tolist() == [[[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]]]
    assert torch.equal(matrix.sum(1), torch.ones(1, 4))
    assert torch.equal(matrix.sum(2), source.size)
    codes = torch.randn(1, 3, 5)
    torch.testing.assert_close(merging.unmerge(codes, source.assignment), matrix.transpose(1, 2) @ codes)


@pytest.mark.parametrize("protect", [True, False])
def test_gradients_reach_every_token(protect: bool) -> None:
    x = tokens(1, 9, 3, 0).requires_grad_()
    chosen = merging.match(x, 4, protect_first=protect)
    merged, _ = merging.merge(chosen, x, torch.ones(1, 9, dtype=torch.float64))
    merged.square().sum().backward()
    assert (x.grad != 0).all()
