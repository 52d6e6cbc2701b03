"""Allocators: an image's count depends on the image and a constant; the constant gives the wanted mean."""

from __future__ import annotations

import json
import re
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import mergevq
from mergevq.allocation import (
    Allocator,
    Calibration,
    CompressedSizeAllocator,
    CompressedSizeAllocatorConfig,
    FixedAllocator,
    FixedAllocatorConfig,
    LearnedAllocator,
    LearnedAllocatorConfig,
    OracleAllocator,
    OracleAllocatorConfig,
    SimilarityAllocator,
    SimilarityAllocatorConfig,
    build_allocator,
    calibrate,
    calibrations,
    checked_menu,
    distortions,
    encode_allocated,
    lagrangian_counts,
    nearest_counts,
)
from mergevq.errors import InputError
from mergevq.merge_schedule import merge_schedule
from mergevq.metrics import Psnr

MENU = (4, 6, 9, 12, 16)
ALLOCATORS: dict[str, Allocator] = {
    "compressed_size": CompressedSizeAllocator(MENU),
    "oracle": OracleAllocator(MENU),
    "similarity": SimilarityAllocator(MENU),
}


def trained_like() -> mergevq.MergeVQ:
    torch.manual_seed(0)
    tokenizer = mergevq.create("test_gr").double().eval()
    with torch.no_grad():  # at its start LayerScale hides attention and merging
        for parameter_name, parameter in tokenizer.named_parameters():
            if parameter_name.endswith("gamma"):
                parameter.fill_(0.7)
    return tokenizer


TOKENIZER = trained_like()


def learned() -> LearnedAllocator:
    torch.manual_seed(1)
    allocator = LearnedAllocator(LearnedAllocatorConfig(hidden=8), MENU, width=32).double().eval()
    with torch.no_grad():  # falling curves, of which the image decides how they fall
        allocator.head[-1].weight.mul_(3)
        allocator.head[-1].bias.copy_(torch.linspace(7, 5, len(MENU)))
    return allocator


ALLOCATORS["learned"] = learned()


def images(batch: int, seed: int = 1) -> Tensor:
    """Noise that differs in strength from image to image."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, 3, 16, 16, generator=generator).double() * 2 - 1
    return noise * torch.linspace(0.05, 1, batch)[:, None, None, None]


def random_scores(images: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, len(MENU), generator=generator, dtype=torch.float64) * 100


@pytest.mark.parametrize("allocator", ALLOCATORS.values(), ids=ALLOCATORS)
@torch.inference_mode()
def test_what_an_allocator_sees_in_an_image_does_not_depend_on_the_batch(allocator: Allocator) -> None:
    batch = images(7)
    together = allocator.scores(TOKENIZER, batch)
    assert together.dtype == torch.float64
    assert len(together) == 7
    for parts in ([1] * 7, [3, 4], [5, 2]):
        apart = torch.cat([allocator.scores(TOKENIZER, part) for part in batch.split(parts)])
        torch.testing.assert_close(together, apart, rtol=1e-9, atol=0)  # matrix products round by batch


@given(images=st.integers(1, 60), seed=st.integers(0, 99), constants=st.tuples(*[st.floats(0, 100)] * 2))
@settings(max_examples=40)
def test_the_mean_count_is_monotone_in_the_constant(
    images: int, seed: int, constants: tuple[float, float]
) -> None:
    low, high = sorted(constants)
    scores = random_scores(images, seed)
    oracle, size, similarity = (ALLOCATORS[kind] for kind in ("oracle", "compressed_size", "similarity"))
    assert (oracle.counts(scores, low) >= oracle.counts(scores, high)).all()
    assert (size.counts(scores[:, 0], low) <= size.counts(scores[:, 0], high)).all()
    ascending = scores.sort(dim=1).values
    assert (similarity.counts(ascending, low) <= similarity.counts(ascending, high)).all()


@given(images=st.integers(1, 200), seed=st.integers(0, 99), budget=st.floats(MENU[0], 10))
@settings(max_examples=40)
def test_calibration_finds_the_nearest_mean_that_there_is(images: int, seed: int, budget: float) -> None:
    scores, allocator = random_scores(images, seed), OracleAllocator(MENU)
    most = float(allocator.counts(scores, 0.0).double().mean())
    if budget > most:
        with pytest.raises(InputError, match=re.escape(f"keeps 4 to {most:.4g}")):
            calibrate(scores, allocator, budget)
        return
    found = calibrate(scores, allocator, budget)
    assert found.reached == allocator.counts(scores, found.constant).double().mean()
    # Every price at which some image changes its count: between two of them no mean changes.
    gaps = (scores[:, :, None] - scores[:, None, :]) / (
        torch.tensor(MENU)[None] - torch.tensor(MENU)[:, None]
    )
    prices = gaps[gaps.isfinite() & (gaps >= 0)].unique()
    between = torch.cat([prices, (prices[1:] + prices[:-1]) / 2, torch.tensor([0.0, 2e3])]).tolist()
    means = [float(allocator.counts(scores, price).double().mean()) for price in between]
    assert abs(found.reached - budget) <= min(abs(mean - budget) for mean in means) + 1e-9


def test_of_all_choices_with_this_mean_the_lagrangian_one_distorts_least() -> None:
    scores = random_scores(6, seed=3)
    counts = lagrangian_counts(scores, MENU, 4.0)
    columns = torch.cartesian_prod(*[torch.arange(len(MENU))] * 6)
    totals = torch.tensor(MENU)[columns].sum(1)
    sums = scores.gather(1, columns.T).sum(0)
    own = scores.gather(1, torch.searchsorted(torch.tensor(MENU), counts)[:, None]).sum()
    assert len(counts.unique()) > 1
    torch.testing.assert_close(sums[totals <= counts.sum()].min(), own)


def test_a_curve_with_a_dip_gets_its_dip_and_equals_get_the_lowest_count() -> None:
    dipped = torch.tensor([[9.0, 9.0, 2.0, 7.0, 1.9], [5.0, 5.0, 5.0, 5.0, 5.0]], dtype=torch.float64)
    assert lagrangian_counts(dipped, MENU, 0.5).tolist() == [9, 4]
    assert lagrangian_counts(dipped, MENU, 0.0).tolist() == [16, 4]


def test_sizes_become_the_nearest_count_and_the_lower_of_two() -> None:
    wanted = torch.tensor([0.0, 4.9, 5.0, 5.1, 7.5, 14.1, 99.0], dtype=torch.float64)
    assert nearest_counts(wanted, MENU).tolist() == [4, 4, 4, 6, 6, 16, 16]


def test_more_detail_costs_more_bytes_and_a_uniform_image_costs_none() -> None:
    sizes = ALLOCATORS["compressed_size"].scores(TOKENIZER, images(5)).tolist()
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1]
    assert ALLOCATORS["compressed_size"].scores(TOKENIZER, torch.zeros(1, 3, 16, 16)).tolist() == [1]
    better = CompressedSizeAllocator(MENU, CompressedSizeAllocatorConfig(quality=95))
    assert better.scores(TOKENIZER, images(5))[-1] > sizes[-1]


@torch.inference_mode()
def test_an_image_merges_as_long_as_its_matches_are_alike() -> None:
    batch = images(4)
    batch[0] = 0.3  # uniform: all its cells but those at the border are the same
    similarity = SimilarityAllocator(MENU)
    scores = similarity.scores(TOKENIZER, batch)
    assert (scores[:, :-1] <= scores[:, 1:]).all()
    assert torch.isinf(scores[:, -1]).all(), "16 of 16 tokens need no merge"
    threshold = float(scores[0, 0])
    assert similarity.counts(scores, threshold).tolist()[0] == 4
    assert similarity.counts(scores, 1.5).tolist() == [16] * 4
    found = similarity.counts(scores, float(scores[:, 2].median()))
    for row, count in enumerate(found.tolist()):
        column = MENU.index(count)
        assert scores[row, column] >= scores[:, 2].median()
        assert column == 0 or scores[row, column - 1] < scores[:, 2].median()


@torch.inference_mode()
def test_similarities_are_those_of_the_merges_that_encode_does() -> None:
    batch, encoder = images(3), TOKENIZER.encoder
    cells = encoder.embed(batch)
    found = encoder.match_similarities(cells, 9)
    assert found.shape == (3, 7)
    block, r = encoder.blocks[0], merge_schedule(16, 9, 2)[0]
    _, metric = block.attention(block.norm1(cells.tokens), None)
    unit = torch.nn.functional.normalize(metric.float(), dim=-1)
    best = (unit[:, 2::2] @ unit[:, 1::2].transpose(1, 2)).amax(-1)  # without the summary token
    torch.testing.assert_close(found[:, :r], best.sort(descending=True).values[:, :r])
    assert encoder.match_similarities(cells, 16).shape == (3, 0)


@pytest.mark.parametrize("allocator", ALLOCATORS.values(), ids=ALLOCATORS)
@torch.inference_mode()
def test_choosing_and_encoding_share_the_stem_and_give_the_codes_of_these_counts(
    allocator: Allocator,
) -> None:
    batch = images(6)
    scores = allocator.scores(TOKENIZER, batch)
    constant = calibrate(scores, allocator, 7).constant
    counts = allocator.counts(scores, constant)
    together = encode_allocated(TOKENIZER, batch, allocator, constant)
    assert len(counts.unique()) > 1
    assert torch.equal(together.counts, counts)
    assert torch.equal(together.indices, TOKENIZER.encode(batch, keep=counts).indices)


@torch.inference_mode()
def test_the_distortion_is_that_of_psnr() -> None:
    batch = images(3)
    found = distortions(TOKENIZER, batch, MENU)
    assert found.shape == (3, 5)
    for column, count in enumerate(MENU):
        psnr = Psnr()
        psnr.update(batch, TOKENIZER.decode(TOKENIZER.encode(batch, count)))
        expected = (10 * torch.log10(255.0**2 / found[:, column])).mean()
        assert psnr.compute()["psnr"] == pytest.approx(float(expected))


def test_one_count_for_all_is_one_of_the_menu_and_nothing_between() -> None:
    fixed = FixedAllocator(MENU)
    scores = fixed.scores(TOKENIZER, images(3))
    found = calibrate(scores, fixed, 9)
    assert (found.constant, found.reached) == (9, 9)
    assert fixed.counts(scores, 9).tolist() == [9, 9, 9]
    with pytest.raises(
        InputError, match=r"^the allocator fixed keeps one count .* 10\.5 .* nearest are 9, 12$"
    ):
        calibrate(scores, fixed, 10.5)


@pytest.mark.parametrize("budget", [3.9, 16.1, float("nan")])
def test_a_budget_outside_the_menu_is_refused_in_one_line(budget: float) -> None:
    with pytest.raises(InputError, match=r"^a mean of .* lies outside the menu, 4 to 16: [^\n]*$"):
        calibrate(random_scores(3, 0), OracleAllocator(MENU), budget)


def test_no_images_calibrate_nothing() -> None:
    with pytest.raises(InputError, match="there are none"):
        calibrate(random_scores(0, 0), OracleAllocator(MENU), 9)


def test_a_menu_is_sorted_and_holds_reachable_counts() -> None:
    assert checked_menu([9, 4, 16, 9], TOKENIZER.config) == (4, 9, 16)
    with pytest.raises(InputError, match="cannot keep 2 of 16 tokens"):
        checked_menu([2, 9], TOKENIZER.config)
    with pytest.raises(InputError, match="menu of an allocator is empty"):
        checked_menu([], TOKENIZER.config)


def calibration() -> Calibration:
    return Calibration(
        allocator=CompressedSizeAllocatorConfig(quality=50),
        allocator_sha256=None,
        menu=MENU,
        tokenizer_sha256="a" * 64,
        data_fingerprint="f",
        split="train",
        images=9,
        budgets=calibrations(random_scores(9, 0)[:, 0], CompressedSizeAllocator(MENU), [9, 6, 9]),
    )


def test_a_stored_calibration_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    calibration().write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json") == calibration()
    assert [known.budget for known in calibration().budgets] == [6, 9]


def test_a_calibration_says_what_it_does_not_hold_for() -> None:
    with pytest.raises(InputError, match="not calibrated for a mean of 7 kept tokens, only for 6, 9"):
        calibration().of(7)
    calibration().require_tokenizer("a" * 64)
    with pytest.raises(InputError, match="a tokenizer of weights aaaaaaaaaaaa…, this one has bbbb"):
        calibration().require_tokenizer("b" * 64)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not there"),
        ("{", "is not JSON"),
        ("[]", "something other"),
        (json.dumps({"format": "mergevq calibration 1"}), "allocator: Field required"),
    ],
)
def test_a_file_that_is_no_calibration_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "calibration.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=f"calibration.json.*{words}"):
        Calibration.read(path)


def test_every_configuration_becomes_its_allocator() -> None:
    for config, kind in (
        (FixedAllocatorConfig(), FixedAllocator),
        (CompressedSizeAllocatorConfig(), CompressedSizeAllocator),
        (OracleAllocatorConfig(), OracleAllocator),
        (SimilarityAllocatorConfig(), SimilarityAllocator),
    ):
        assert type(build_allocator(config, MENU)) is kind
