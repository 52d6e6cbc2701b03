"""Perturbed codes and sources: the nearest codes are those of the codebook, and every draw belongs to its image."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import mergevq
from mergevq.errors import InputError
from mergevq.nearest_codes import draw_nearest, level_distances
from mergevq.perturbation import (
    RATES,
    Perturbation,
    decode_perturbed,
    decode_perturbed_source,
    perturb_indices,
    perturb_source,
    published_grid,
    strengths,
)
from mergevq.quantize import FSQConfig, LFQConfig, QuantizerConfig, build_quantizer

LFQ, FSQ = LFQConfig(bits=5), FSQConfig(levels=(5, 4, 3))
DRAWS = 20_000


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chances(quantizer: QuantizerConfig, code: int, neighbours: int) -> Tensor:
    """By a table of all codes: nearest first, and of codes that are equally far each as likely to be within the number."""
    codes = build_quantizer(quantizer).codes(torch.arange(quantizer.vocabulary)).double()
    distance = (codes - codes[code]).square().sum(1).mul(1e6).round()
    shares, left = torch.zeros(quantizer.vocabulary, dtype=torch.float64), float(neighbours)
    for shell in distance.unique():
        members = distance == shell
        taken = min(left, float(members.sum()))
        shares[members] = taken / float(members.sum()) / neighbours
        left -= taken
    return shares


@pytest.mark.parametrize("quantizer", [LFQ, FSQ])
@pytest.mark.parametrize("neighbours", [1, 2, 4, 9, 20, 32])
def test_draws_are_of_the_nearest_codes_of_the_codebook_each_as_likely(
    quantizer: QuantizerConfig, neighbours: int
) -> None:
    for code in (0, quantizer.vocabulary // 2, quantizer.vocabulary - 1):
        expected = chances(quantizer, code, neighbours)
        indices = torch.full((DRAWS,), code)
        found = draw_nearest(quantizer, indices, uniform(DRAWS, 1 + quantizer.channels), neighbours)
        seen = torch.bincount(found, minlength=quantizer.vocabulary).double() / DRAWS
        assert not seen[expected == 0].any()
        deviation = (expected * (1 - expected) / DRAWS).sqrt()
        assert ((seen - expected).abs() <= 5 * deviation + 1e-12).all()


def test_a_strength_of_one_is_the_code_itself_and_all_codes_are_within_the_vocabulary() -> None:
    for quantizer in (LFQ, FSQ):
        every = torch.arange(quantizer.vocabulary)
        drawn = uniform(len(every), 1 + quantizer.channels)
        assert torch.equal(draw_nearest(quantizer, every, drawn, 1), every)
        far = draw_nearest(quantizer, every, drawn, quantizer.vocabulary)
        assert far.min() >= 0
        assert far.max() < quantizer.vocabulary
        assert not torch.equal(far, every)
    edge = torch.full((3, 1 + LFQ.bits), 1 - 2.0**-53, dtype=torch.float64)
    assert draw_nearest(LFQ, torch.tensor([0, 7, 31]), edge, 32).tolist() == [31, 24, 0]


def test_the_distances_of_levels_are_those_of_the_codes() -> None:
    for quantizer in (LFQ, FSQ):
        module, tables = build_quantizer(quantizer), level_distances(quantizer)
        codes = module.codes(torch.arange(quantizer.vocabulary)).double()
        true = (codes[:, None] - codes).square().sum(2)
        sizes = [len(table) for table in tables]
        rest, digits = torch.arange(quantizer.vocabulary), []
        for size in sizes:
            digits.append(rest % size)
            rest = rest // size
        ours = sum(
            (table[digit][:, digit] for table, digit in zip(tables, digits, strict=True)), torch.zeros(())
        )
        ratio = ours[true > 0] / true[true > 0]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_the_published_strengths_are_those_of_the_papers_codebooks_and_scale_beyond_them() -> None:
    assert strengths(16384) == (200, 280, 360)
    assert strengths(1024) == (10, 15, 20)
    assert strengths(2**18) == (3200, 4480, 5760)
    assert strengths(64) == (2,)
    assert len(published_grid(2**18)) == len(RATES) * 3
    assert published_grid(4096)[0] == Perturbation(0.9, 50)


counts = st.lists(st.integers(1, 12), min_size=1, max_size=5)


@given(
    counts=counts,
    rate=st.sampled_from([0.0, *RATES, 1.0]),
    ids=st.lists(st.integers(0, 10**12), min_size=5, max_size=5),
)
@settings(max_examples=15, deadline=None)
def test_an_image_is_perturbed_as_alone_whatever_its_batch_and_padding(
    counts: list[int], rate: float, ids: list[int]
) -> None:
    ids, at = ids[: len(counts)], Perturbation(rate, 6)
    indices = torch.full((len(counts), max(counts)), -1)
    for row, count in enumerate(counts):
        indices[row, :count] = torch.randint(0, 32, (count,), generator=torch.Generator().manual_seed(row))
    together = perturb_indices(LFQ, indices, ids, at, seed=3)
    assert torch.equal(together == -1, indices == -1)
    for row, count in enumerate(counts):
        alone = perturb_indices(LFQ, indices[row : row + 1, :count], ids[row : row + 1], at, seed=3)
        assert torch.equal(together[row, :count], alone[0])
        assert (together[row] != indices[row]).sum() <= int(rate * count + 0.5 + 1e-9)


def test_the_share_is_rounded_to_whole_tokens_and_larger_shares_contain_smaller_ones() -> None:
    # Of 2 codes the nearest 2 are both; a token that is chosen keeps its own with one half.
    indices = torch.zeros(400, 25, dtype=torch.int64)
    changed = {
        rate: perturb_indices(LFQ, indices, range(400), Perturbation(rate, 32)) != 0
        for rate in (0, *RATES, 1)
    }
    assert not changed[0].any()
    for rate in (*RATES, 1):
        expected = int(rate * 25 + 0.5) * 31 / 32
        assert changed[rate].sum(1).max() <= int(rate * 25 + 0.5)
        assert float(changed[rate].double().sum(1).mean()) == pytest.approx(expected, rel=0.02)
    for smaller, larger in zip((0.5, 0.6, 0.7, 0.8), (0.6, 0.7, 0.8, 0.9), strict=True):
        assert (changed[smaller] <= changed[larger]).all()
        assert not torch.equal(changed[smaller], changed[larger])
    again, other = (
        perturb_indices(LFQ, indices, range(400), Perturbation(1, 32), seed=seed) for seed in (0, 1)
    )
    assert torch.equal(again != 0, changed[1])
    assert not torch.equal(again, other)


def test_cells_go_where_the_recoverys_distribution_draws_them() -> None:
    chance = torch.tensor([0.6, 0.3, 0.1, 0.0])
    images, cells = 200, 64
    truth = mergevq.Source(torch.full((images, cells), 3), torch.zeros(images, 4))
    logits = chance.log().expand(images, cells, 4)
    moved = perturb_source(truth, logits, range(images), 1.0)
    seen = Counter(moved.assignment.flatten().tolist())
    for token, share in enumerate(chance.tolist()):
        assert seen[token] / (images * cells) == pytest.approx(share, abs=0.015)
    half = perturb_source(truth, logits, range(images), 0.5)
    assert ((half.assignment != 3).sum(1) == cells // 2).all()
    assert torch.equal(half.assignment, torch.where(half.assignment != 3, moved.assignment, 3))
    assert torch.equal(half.size.sum(1), torch.full((images,), float(cells)))


@pytest.fixture(scope="module")
def tokenizer() -> mergevq.MergeVQ:
    torch.manual_seed(0)
    return mergevq.create("test_gr").eval()


@torch.inference_mode()
def test_perturbed_images_are_those_of_one_image_and_of_ragged_batches(tokenizer: mergevq.MergeVQ) -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    encoded = tokenizer.encode(images, [4, 9, 16])
    ids, at = torch.tensor([5, 10**9, 7]), Perturbation(0.9, 20)
    for recovered in (False, True):
        together = decode_perturbed(tokenizer, encoded, ids, at, recovered=recovered)
        plain = tokenizer.decode_indices(encoded.indices) if recovered else tokenizer.decode(encoded)
        assert not torch.allclose(together, plain)
        unperturbed = decode_perturbed(tokenizer, encoded, ids, Perturbation(0, 20), recovered=recovered)
        torch.testing.assert_close(unperturbed, plain)
        for row, keep in enumerate((4, 9, 16)):
            alone = tokenizer.encode(images[row : row + 1], keep)
            one = decode_perturbed(tokenizer, alone, ids[row : row + 1], at, recovered=recovered)
            torch.testing.assert_close(one[0], together[row], rtol=1e-4, atol=1e-4)
    moved = decode_perturbed_source(tokenizer, encoded, ids, 0.9)
    torch.testing.assert_close(
        decode_perturbed_source(tokenizer, encoded, ids, 0.0), tokenizer.decode(encoded)
    )
    for row, keep in enumerate((4, 9, 16)):
        alone = tokenizer.encode(images[row : row + 1], keep)
        one = decode_perturbed_source(tokenizer, alone, ids[row : row + 1], 0.9)
        torch.testing.assert_close(one[0], moved[row], rtol=1e-4, atol=1e-4)


def test_wrong_perturbations_are_one_line() -> None:
    indices = torch.zeros(2, 3, dtype=torch.int64)
    source = mergevq.Source(torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 3))
    for perturb, said in [
        (lambda: perturb_indices(LFQ, indices, [0, 1], Perturbation(1.5, 3)), "1.5: it must be from 0 to 1"),
        (lambda: perturb_indices(LFQ, indices, [0, 1], Perturbation(0.5, 33)), "neighbours is 33"),
        (lambda: perturb_indices(LFQ, indices, [0], Perturbation(0.5, 3)), "each of 2 images"),
        (lambda: perturb_indices(LFQ, indices, [0, -1], Perturbation(0.5, 3)), "the least -1"),
        (lambda: perturb_source(source, torch.zeros(2, 4, 5), [0, 1], 0.5), r"logits \(2, 4, 5\)"),
    ]:
        with pytest.raises(InputError, match=said) as raised:
            perturb()
        assert "\n" not in str(raised.value)
