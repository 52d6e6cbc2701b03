"""What people give a tokenizer instead of images, codes, indices and sources is named in one line with one fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mergevq
from mergevq.errors import InputError
from mergevq.merging import Source

KEEP = 9


@pytest.fixture(scope="module")
def tokenizer() -> mergevq.MergeVQ:
    torch.manual_seed(0)
    return mergevq.create("test_gr").eval()


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


STRANGE: dict[str, tuple[Any, str]] = {
    "no batch": (images()[0], r"\(3, 16, 16\): add the batch, images\[None\]"),
    "grey": (images()[:, :1], r"\(2, 1, 16, 16\): repeat grey"),
    "alpha": (torch.zeros(2, 4, 16, 16), r"\(2, 4, 16, 16\): lay them over a background"),
    "channels at the end": (images().permute(0, 2, 3, 1), r"\(2, 16, 16, 3\): .*permute\(0, 3, 1, 2\)"),
    "flat": (images().flatten(1), r"\(2, 768\): bring them into this shape"),
    "bytes": (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), r"uint8: images / 127\.5 - 1"),
    "whole": (torch.zeros(2, 3, 16, 16, dtype=torch.int64), r"int64: make them float"),
    "double": (images().double(), r"float64, the weights float32: images\.to\(torch\.float32\)"),
    "half": (images().half(), r"float16, the weights float32: images\.to\(torch\.float32\)"),
    "numpy": (images().numpy(), r"a numpy\.ndarray: make a tensor"),
    "list": ([images()], r"a list: make a tensor"),
    "no memory": (images().to("meta"), r"on meta, the weights on cpu"),
    "sparse": (images().to_sparse(), r"sparse_coo: images\.to_dense\(\)"),
}
WRONG_VALUES = {
    "0 to 255": (images() * 127.5 + 127.5, r"within \[0\.\d+, 25\d.*\]: images / 127\.5 - 1"),
    "normalised for ImageNet": ((images() / 2 + 0.5 - 0.45) / 0.225, r"within \[-2, 2\.4.*\]: scale them"),
    "NaN": (images().masked_fill(images() > 0.99, torch.nan), "partly NaN"),
    "infinite": (images().masked_fill(images() > 0.99, torch.inf), r"within \[-0\.99.*, inf\]: scale them"),
}
METHODS: dict[str, Callable] = {
    "encode": lambda tokenizer, x: tokenizer.encode(x, KEEP),
    "encode_summary": lambda tokenizer, x: tokenizer.encode_summary(x, KEEP),
    "forward": lambda tokenizer, x: tokenizer(x, KEEP),
    "unchecked": lambda tokenizer, x: tokenizer.encode(x, KEEP, check_values=False),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", STRANGE)
def test_what_is_no_batch_of_images_is_named(tokenizer: mergevq.MergeVQ, kind: str, method: str) -> None:
    given, said = STRANGE[kind]
    expected = r"^images must be \(B, 3, H, W\) float in \[-1, 1\]; these are .*" + said
    with pytest.raises(InputError, match=expected) as caught:
        METHODS[method](tokenizer, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", WRONG_VALUES)
def test_values_that_are_no_images_are_named_outside_of_training_steps(
    tokenizer: mergevq.MergeVQ, kind: str
) -> None:
    given, said = WRONG_VALUES[kind]
    for method in ("encode", "encode_summary"):
        with pytest.raises(InputError, match=r"^images must be .*; these are .*" + said):
            METHODS[method](tokenizer, given)
    for method in ("unchecked", "forward"):
        METHODS[method](tokenizer, given)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [5, 20, 24, 112])
def test_what_resampling_adds_is_let_through(tokenizer: mergevq.MergeVQ, size: int, mode: str) -> None:
    worst = torch.randint(0, 2, (64, 3, size, size), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    for antialias in (False, True):
        resized = F.interpolate(worst, (16, 16), mode=mode, antialias=antialias)
        tokenizer.encode(resized, KEEP)
    tokenizer.encode(images(0), KEEP)


def test_half_precision_weights_and_autocast_take_what_they_took(tokenizer: mergevq.MergeVQ) -> None:
    half = mergevq.create("test_gr").bfloat16().eval()
    half.encode(images().bfloat16(), KEEP)
    with torch.autocast("cpu", torch.bfloat16):
        tokenizer.encode(images(), KEEP)
        tokenizer.encode(images().bfloat16(), KEEP)
        with pytest.raises(InputError, match="float64"):
            tokenizer.encode(images().double(), KEEP)
        with pytest.raises(InputError, match="float16"):  # autocast's other half precision
            tokenizer.encode(images().half(), KEEP)


NO_COUNTS = [9.0, [9], (9, 9), "9", np.float32(9), np.array([9, 9]), torch.tensor([9, 9]), torch.nan]


@pytest.mark.parametrize("keep", NO_COUNTS, ids=repr)
def test_a_count_that_is_not_one_whole_number_is_named(tokenizer: mergevq.MergeVQ, keep: Any) -> None:
    for call in (tokenizer.encode_summary, tokenizer):
        with pytest.raises(InputError, match=r"^keep must be one whole number for all images; this is "):
            call(images(), keep)


@pytest.mark.parametrize("keep", [9.0, [9], "9", "99", np.float32(9), [9, 9.5], torch.nan], ids=repr)
def test_what_is_neither_one_count_nor_one_for_each_image_is_named(
    tokenizer: mergevq.MergeVQ, keep: Any
) -> None:
    with pytest.raises(
        InputError, match=r"^keep (must be one whole number for all|has 1 numbers for 2) images"
    ):
        tokenizer.encode(images(), keep)


@pytest.mark.parametrize("keep", [np.int64(KEEP), np.array(KEEP), torch.tensor(KEEP)], ids=repr)
def test_whole_numbers_of_other_libraries_are_counts(tokenizer: mergevq.MergeVQ, keep: Any) -> None:
    assert torch.equal(tokenizer.encode(images(), keep).indices, tokenizer.encode(images(), KEEP).indices)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_and_gradients_of_images_change_no_code(
    tokenizer: mergevq.MergeVQ, layout: torch.memory_format
) -> None:
    given = images().contiguous(memory_format=layout).requires_grad_()
    turned = images().transpose(2, 3).contiguous().transpose(2, 3)
    expected = tokenizer.encode(images(), KEEP).indices
    assert torch.equal(tokenizer.encode(given, KEEP).indices, expected)
    assert torch.equal(tokenizer.encode(turned, KEEP).indices, expected)


def test_a_compiled_encode_is_one_graph_without_a_look_at_values(tokenizer: mergevq.MergeVQ) -> None:
    torch._dynamo.reset()
    expected = tokenizer.encode(images(), 16)
    with torch.no_grad():
        found = torch.compile(tokenizer.encode, backend="eager", fullgraph=True)(images(), 16)
    assert torch.equal(found.indices, expected.indices)
    torch._dynamo.reset()


def test_codes_indices_and_sources_that_are_none_are_named(tokenizer: mergevq.MergeVQ) -> None:
    encoded = tokenizer.encode(images(), KEEP)
    codes, indices, source = encoded.codes, encoded.indices, encoded.source

    def refused(call: Callable[[], object], said: str) -> None:
        with pytest.raises(InputError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)

    for method in (
        tokenizer.recover,
        tokenizer.recovered_source,
        lambda x: tokenizer.decode_codes(x, source),
    ):
        refused(lambda: method(codes[0]), r"^codes must be \(B, K, 6\) float; these are \(9, 6\)")  # noqa: B023
        refused(lambda: method(codes[..., :4]), r"\(2, 9, 4\) float32: give those of `encode`")  # noqa: B023
        refused(lambda: method(codes.long()), r"\(2, 9, 6\) int64: give indices to decode_indices")  # noqa: B023
        refused(lambda: method(codes.numpy(force=True)), r"a numpy\.ndarray")  # noqa: B023
    refused(
        lambda: tokenizer.decode_indices(indices[0]), r"^code indices must be \(B, K\) int64; these are \(9,"
    )
    refused(lambda: tokenizer.decode_indices(indices.int()), r"int32: indices\.long\(\)")
    refused(lambda: tokenizer.decode_indices(codes), r"\(2, 9, 6\) float32: give those of `encode`")
    refused(lambda: tokenizer.decode_indices(np.zeros((1, 9), int)), r"a numpy\.ndarray: make a tensor")
    refused(lambda: tokenizer.decode_indices(indices + 64), r"must lie in 0\.\.63, got")

    refused(lambda: tokenizer.decode_indices(indices[:, :0]), r"\(2, 0\), of no kept tokens")
    refused(lambda: tokenizer.decode_indices(indices.to("meta")), r"on meta, .*indices\.to\('cpu'\)")
    refused(
        lambda: tokenizer.decode_indices(torch.zeros(1, 17, dtype=torch.int64)),
        "17 kept tokens, but .* has 16",
    )
    for method in (tokenizer.recover, lambda x: tokenizer.decode_codes(x, source)):
        refused(lambda: method(codes.double()), r"float64, the weights float32: codes\.to\(torch\.float32\)")  # noqa: B023
        refused(lambda: method(codes.to("meta")), "on meta, the weights on cpu")  # noqa: B023
    for other in (None, codes, tuple(encoded)):
        refused(lambda: tokenizer.decode(other), "^decode takes what `encode` returns; this is a ")  # noqa: B023

    wrong = {
        r"source\.size must be a tensor; this is a NoneType": Source(source.assignment, None),
        r"source\.assignment must be a tensor; this is a list": Source([[0]], source.size),
        r"this is \(2, 0\) int64": Source(source.assignment[:, :0], source.size),
        "the source is on meta, the codes on cpu": Source(source.assignment.to("meta"), source.size),
        r"the source has 15 cells, which are no square: say its rows and columns": Source(
            source.assignment[:, :15], source.size
        ),
        r"the source has 16 cells, but its grid is 3 x 5": Source(source.assignment, source.size, (3, 5)),
        r"\(2, 16\) float32": Source(source.assignment.float(), source.size),
        "the source is of 1 images of 9 tokens, the codes of 2 of 9": Source(
            source.assignment[:1], source.size[:1]
        ),
        "the source is of 2 images of 8 tokens": Source(source.assignment, source.size[:, :8]),
    }
    for said, other in wrong.items():
        refused(lambda: tokenizer.decode_codes(codes, other), said)  # noqa: B023
        refused(lambda: tokenizer.decode_indices(indices, other), said)  # noqa: B023
    far = Source(source.assignment + 1, source.size)
    refused(lambda: tokenizer.decode_indices(indices, far), r"must lie in 0\.\.8, .*reaches from 1 to 9")
    refused(
        lambda: tokenizer.decode_indices(indices, source.assignment), "must be a mergevq.Source; this is a"
    )
