"""MergeAR's mask: Figure 6a's worked example row by row, and the definition by brute force."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from mergevq.generation.masks import first_occurrences, mergear_mask


def test_the_mask_is_the_figures_row_by_row() -> None:
    # First cells (from 1) of the clusters of cells 1 to 9, as printed: 1 1 3 3 5 5 5 8 8.
    printed = torch.tensor([[1, 1, 3, 3, 5, 5, 5, 8, 8]])
    first = first_occurrences(printed[:, :-1])
    assert (first[0].nonzero()[:, 0] + 1).tolist() == [1, 3, 5, 8]
    mask = mergear_mask(first, window=2, prefix=2)[0]
    seen = {}
    for cell in range(1, 10):
        row = mask[cell]  # input `cell` (class, merge, cell 1, ...) predicts that cell
        assert row[:2].all(), "class and merge token are always seen"
        seen[cell] = (row[2:].nonzero()[:, 0] + 1).tolist()
    assert seen == {
        1: [],
        2: [1],
        3: [1, 2],
        4: [1, 2, 3],
        5: [1, 3, 4],
        6: [1, 3, 4, 5],
        7: [1, 3, 5, 6],
        8: [1, 3, 5, 6, 7],
        9: [1, 3, 5, 7, 8],
    }
    assert mask[0].nonzero()[:, 0].tolist() == [0], "the class token sees itself alone"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=14), st.integers(1, 5), st.integers(1, 3))
def test_the_mask_is_the_definition(codes: list[int], window: int, prefix: int) -> None:
    mask = mergear_mask(first_occurrences(torch.tensor([codes])), window, prefix)[0]
    for i in range(prefix + len(codes)):
        for j in range(prefix + len(codes)):
            query, key = i - prefix, j - prefix  # predicting cell query + 1
            if j > i:
                expected = False
            elif key < 0:
                expected = True
            else:
                expected = query + 1 - key <= window or codes[key] not in codes[:key]
            assert bool(mask[i, j]) == expected, (i, j)


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3))
def test_first_occurrences_have_no_equal_before_them(rows: list[list[int]]) -> None:
    found = first_occurrences(torch.tensor(rows))
    assert found.tolist() == [[code not in row[:i] for i, code in enumerate(row)] for row in rows]
