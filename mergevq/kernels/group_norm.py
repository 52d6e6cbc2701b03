"""Group norm, and group norm with SiLU, of channels-last maps, forward and backward.

PyTorch's group norm takes channels-last memory and, on CUDA, gives contiguous memory, so that a copy stands before every
next convolution; on a CPU it is slow there, and its float32 result wrong where means are large. And norm, SiLU and their
gradients each read and write the whole map. Here one pass takes the statistics and one writes the result in the layout
that it came in; the backward pass keeps the input alone. Both ways are as exact where the mean is a thousand deviations
as where it is none.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mergevq.kernels.terms import Terms


class ChannelsLastGroupNorm(torch.autograd.Function):
    """`apply(x, weight, bias, groups, eps, silu, dtype)`: x (B, C, H, W) channels-last -> the same shape and layout, `dtype`.

    `weight`, `bias`: (C,), or (B, C) of each image. Once differentiable.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        silu: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        out = torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)
        ctx.save_for_backward(x, *_passes(x).forward(x, weight, bias, groups, eps, silu, out))
        ctx.silu = silu
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *kept = ctx.saved_tensors
        terms = Terms(*kept)
        grad = grad.contiguous(memory_format=torch.channels_last)
        out, sums = _passes(x).backward(x, grad, terms, ctx.silu)
        bias_gradient, weight_gradient = (
            part.sum(0) if terms.weight.ndim == 1 else part for part in sums.unbind(0)
        )
        gradients = weight_gradient.to(terms.weight.dtype), bias_gradient.to(terms.bias.dtype)
        return out, *gradients, None, None, None, None


def _passes(x: Tensor) -> ModuleType:
    if x.is_cuda:
        from mergevq.kernels import group_norm_triton

        return group_norm_triton
    from mergevq.kernels import group_norm_cpu

    return group_norm_cpu
