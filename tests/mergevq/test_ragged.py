"""A kept count for every image: each image gets what it gets alone, and what is padded is never read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import mergevq
from mergevq.errors import InputError
from mergevq.metrics import CodeUsage
from mergevq.ragged import NO_TOKEN, checked_counts


def trained_like(name: str) -> mergevq.MergeVQ:
    torch.manual_seed(0)
    tokenizer = mergevq.create(name).double().eval()
    with torch.no_grad():  # at its start LayerScale hides attention and merging
        for parameter_name, parameter in tokenizer.named_parameters():
            if parameter_name.endswith("gamma"):
                parameter.fill_(0.7)
    return tokenizer


TOKENIZERS = {name: trained_like(name) for name in ("test_gr", "test_r")}


def images(batch: int) -> Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double() * 2 - 1


def tokenizer() -> mergevq.MergeVQ:
    return TOKENIZERS["test_gr"]


@contextmanager
def in_one_pass(wanted: bool) -> Iterator[None]:
    """As on a GPU, or as on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mergevq.ragged.in_one_pass", lambda device: wanted)
        yield


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("name", TOKENIZERS)
@given(counts=st.lists(st.integers(4, 16), min_size=1, max_size=6))
@settings(max_examples=12, deadline=None)
@torch.inference_mode()
def test_every_image_gets_what_it_gets_alone(name: str, one_pass: bool, counts: list[int]) -> None:
    model, batch = TOKENIZERS[name], images(len(counts))
    with in_one_pass(one_pass):
        together = model.encode(batch, keep=torch.tensor(counts))
    assert together.counts.tolist() == counts
    assert together.indices.shape == (len(counts), max(counts))
    decoded, unknown = model.decode(together), model.decode_indices(together.indices)
    for row, count in enumerate(counts):
        alone = model.encode(batch[row : row + 1], keep=count)
        assert torch.equal(together.indices[row, :count], alone.indices[0])
        assert torch.equal(together.source.assignment[row], alone.source.assignment[0])
        assert torch.equal(together.source.size[row, :count], alone.source.size[0])
        for part in ("codes", "kept_tokens", "latents"):
            torch.testing.assert_close(getattr(together, part)[row, :count], getattr(alone, part)[0])
            assert not getattr(together, part)[row, count:].any()
        assert (together.indices[row, count:] == -1).all()
        assert not together.source.size[row, count:].any()
        torch.testing.assert_close(together.summary[row], alone.summary[0])
        torch.testing.assert_close(decoded[row : row + 1], model.decode(alone))
        torch.testing.assert_close(unknown[row : row + 1], model.decode_indices(alone.indices))


@torch.inference_mode()
def test_indices_with_their_source_decode_to_the_same_images() -> None:
    encoded = tokenizer().encode(images(3), keep=[16, 5, 9])
    torch.testing.assert_close(
        tokenizer().decode_indices(encoded.indices, encoded.source), tokenizer().decode(encoded)
    )


@torch.inference_mode()
def test_what_is_padded_has_no_part_in_the_source_that_recovery_predicts() -> None:
    encoded = tokenizer().encode(images(3), keep=[16, 5, 9])
    logits = tokenizer().recover(encoded.codes, encoded.counts)
    assert logits.shape == (3, 16, 16)
    assert torch.isneginf(logits[1, :, 5:]).all()
    assert logits[1, :, :5].isfinite().all()
    disturbed = encoded.codes.clone()
    disturbed[1, 5:] = 1
    assert torch.equal(tokenizer().recover(disturbed, encoded.counts), logits)


@torch.inference_mode()
def test_the_stem_works_once_and_blocks_only_for_kept_tokens() -> None:
    def flops(keep: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            tokenizer().encode(images(4), keep)
        return counter.get_total_flops()

    assert flops([9, 9, 9, 9]) == flops(9)
    assert flops([5, 16, 16, 5]) == (flops(5) + flops(16)) // 2


@torch.inference_mode()
def test_among_equal_tokens_an_image_merges_the_same_as_alone() -> None:
    flat = images(4)
    flat[:, :, 4:] = 0.25  # cells of three rows are alike, and so are their matches
    with in_one_pass(True):
        together = tokenizer().encode(flat, keep=[5, 12, 7, 12])
    for row, count in enumerate([5, 12, 7, 12]):
        alone = tokenizer().encode(flat[row : row + 1], keep=count)
        assert torch.equal(together.source.assignment[row], alone.source.assignment[0])


@pytest.mark.parametrize("one_pass", [False, True])
def test_gradients_flow_to_every_image(one_pass: bool) -> None:
    batch = images(3).requires_grad_()
    with in_one_pass(one_pass):
        encoded = tokenizer().encode(batch, keep=[5, 9, 5])
    (encoded.latents.square().sum() + encoded.summary.sum()).backward()
    assert batch.grad is not None
    assert (batch.grad.abs().flatten(1).sum(1) > 0).all()


@torch.inference_mode()
def test_an_empty_batch_has_empty_codes() -> None:
    encoded = tokenizer().encode(images(0), keep=[])
    assert len(encoded.indices) == 0
    assert tokenizer().decode(encoded).shape == (0, 3, 16, 16)


def test_usage_counts_tokens_and_no_padding() -> None:
    padded, usage, alone = CodeUsage(8), CodeUsage(8), torch.tensor([3, 3, 7])
    padded.update(torch.tensor([[3, 3], [7, -1]]))
    usage.update(alone)
    assert padded.count == 3
    assert padded.compute() == usage.compute()
    padded.update(torch.tensor([-2]))
    with pytest.raises(InputError, match="-2"):
        padded.compute()


WRONG: dict[str, tuple[Any, str]] = {
    "too few": ([9], "keep has 1 numbers for 2 images: give one for all, or one for each"),
    "fractions": (torch.tensor([4.5, 9.0]), "or one for each; this is .*: give whole numbers"),
    "nested": ([[9], [9]], "give whole numbers"),
    "text": ("ab", "give whole numbers"),
    "unreachable": ([9, 1], "cannot keep 1 of 16 tokens .*the reachable counts are 4 to 16"),
    "beyond the grid": ([9, 17], "cannot keep 17 of 16"),
}


@pytest.mark.parametrize("case", WRONG)
def test_counts_that_cannot_be_are_named(case: str) -> None:
    keep, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        tokenizer().encode(images(2), keep)


def test_padding_stands_only_at_the_end_of_images_that_have_tokens() -> None:
    with pytest.raises(InputError, match="-1 before a token"):
        tokenizer().decode_indices(torch.tensor([[1, -1, 2, 3, 4]]))
    with pytest.raises(InputError, match="image 1 of the batch has no token"):
        tokenizer().decode_indices(torch.tensor([[1, 2], [-1, -1]]))
    with pytest.raises(InputError, match=r"code indices must lie in 0\.\.63, got -2"):
        tokenizer().decode_indices(torch.tensor([[1, -2]]))


def test_indices_outside_the_codebook_are_refused_and_its_ends_are_not() -> None:
    assert checked_counts(torch.tensor([[0, 63]]), 64) is None
    assert checked_counts(torch.tensor([[0, 63], [5, NO_TOKEN]]), 64) == [2, 1]
    for wrong in ([[0, 64]], [[0, 64], [5, NO_TOKEN]]):
        with pytest.raises(InputError, match=r"0\.\.63, got 0\.\.64"):
            checked_counts(torch.tensor(wrong), 64)


class Looks(TorchFunctionMode):
    """Counts the times that a value reaches the host, each of which would wait for a GPU."""

    number = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.number += function in (Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("keep", [9, [16, 5, 9]])
@torch.inference_mode()
def test_decoding_of_indices_looks_at_their_values_once(keep: int | list[int]) -> None:
    indices = tokenizer().encode(images(3), keep).indices
    with Looks() as looks:
        tokenizer().decode_indices(indices)
    assert looks.number == 1


def test_a_source_that_points_at_padding_is_refused() -> None:
    encoded = tokenizer().encode(images(2), keep=[5, 9])
    swapped = encoded.source._replace(assignment=encoded.source.assignment.flip(0))
    with pytest.raises(InputError, match=r"must lie in 0\.\.4, the kept tokens; it reaches from 0 to 8"):
        tokenizer().decode_indices(encoded.indices, swapped)
    for counts, message in (
        ([5, 20], "counts reach from 5 to 20, the codes have 1 to 9"),
        (20, "counts reach from 20 to 20"),
        (0, "counts reach from 0 to 0"),
        ([5], "counts has 1 numbers for 2 images"),
    ):
        with pytest.raises(InputError, match=message):
            tokenizer().recover(encoded.codes, counts)


@torch.inference_mode()
def test_one_number_of_tokens_holds_for_all_images() -> None:
    codes = tokenizer().encode(images(2), keep=9).codes
    short = tokenizer().recover(codes, 5)
    assert torch.isneginf(short[..., 5:]).all()
    torch.testing.assert_close(short[..., :5], tokenizer().recover(codes[:, :5]))


def test_a_training_step_has_one_count_for_all_images() -> None:
    with pytest.raises(InputError, match="one whole number for all images"):
        tokenizer()(images(2), [9, 9])
