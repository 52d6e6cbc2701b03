"""Attention written out is PyTorch's, and is taken where PyTorch's is slow."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.attention import attend


def heads(tokens: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(2, 3, tokens, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("biased", [False, True])
def test_in_half_precision_values_and_gradients_are_those_of_float64(biased: bool) -> None:
    q, k, v = (heads(tokens, torch.bfloat16, seed) for seed, tokens in enumerate((5, 7, 7)))
    bias = torch.linspace(0, 3, 7).expand(2, 1, 1, 7) if biased else None
    towards = heads(5, torch.bfloat16, 9)

    def found(dtype: torch.dtype) -> list[Tensor]:
        given = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = attend(*given, None if bias is None else bias.to(dtype))
        assert out.dtype == dtype
        return [out, *torch.autograd.grad(out, given, towards.to(dtype))]

    for half, exact in zip(found(torch.bfloat16), found(torch.float64), strict=True):
        torch.testing.assert_close(half.double(), exact, rtol=0.03, atol=0.03)


def test_in_float32_and_without_gradients_it_is_pytorchs_bit_for_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v = (heads(6, dtype, seed) for seed in range(3))
        with torch.no_grad():
            assert torch.equal(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))
    single = [heads(6, torch.float32, seed).requires_grad_() for seed in range(3)]
    assert torch.equal(attend(*single), F.scaled_dot_product_attention(*single))
