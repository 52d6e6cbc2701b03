"""The kernels on a GPU: exact in every dtype, the layout kept, the tokenizer's numbers unchanged."""

from __future__ import annotations

import pytest
import torch

import mergevq
from mergevq.decoder import depth_to_space
from mergevq.fused import has_kernel, norm_silu
from mergevq.layers import GroupNorm
from tests.mergevq import interpreted_unit_distance
from tests.mergevq.interpreted_group_norm import CASES, errors

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""The largest error of values of order 1, by the width of the fraction."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_kernels_are_the_norm_and_its_gradient(case: str, dtype: torch.dtype) -> None:
    found = errors(case, dtype, "cuda")
    assert max(found) < max(DTYPES[dtype], 5e-4 * ("thousand" in case)), found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", interpreted_unit_distance.CASES)
def test_the_kernels_are_the_distance_of_unit_vectors_and_its_gradient(case: str, dtype: torch.dtype) -> None:
    found = interpreted_unit_distance.errors(case, dtype, "cuda")
    assert max(found) < DTYPES[dtype], found


def test_half_precision_gives_what_the_next_convolution_reads() -> None:
    x = torch.randn(2, 64, 33, 31, device="cuda").contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(32, 64).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        out = norm_silu(norm, x.bfloat16())
    assert has_kernel(x)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.float(), norm_silu(norm, x.contiguous()), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_depth_to_space_keeps_the_layout_and_the_values(factor: int) -> None:
    x = torch.randn(2, 3 * factor**2, 4, 5)
    rows = depth_to_space(x, factor)
    channels = depth_to_space(x.cuda().contiguous(memory_format=torch.channels_last), factor)
    assert torch.equal(rows, channels.cpu())
    assert rows.is_contiguous()
    assert channels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("preset", ["test_g", "test_gr"])
def test_a_tokenizer_in_channels_last_is_the_contiguous_one(preset: str) -> None:
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        tokenizer = mergevq.create(preset).cuda().to(memory_format=layout)
        images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
        out = tokenizer(images.cuda().contiguous(memory_format=layout), 9)
        out.reconstruction.square().mean().backward()
        gradients = {
            name: p.grad.contiguous() for name, p in tokenizer.named_parameters() if p.grad is not None
        }
        results.append((out, gradients))
    (plain, before), (fused, after) = results
    assert torch.equal(plain.encoded.indices, fused.encoded.indices)
    torch.testing.assert_close(fused.reconstruction, plain.reconstruction, rtol=1e-5, atol=1e-5)
    largest = max(gradient.abs().max() for gradient in before.values())
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-3, atol=1e-5 * float(largest), msg=name)
