"""Errors of the group norm's kernels, run by Triton's interpreter on a CPU: `test_fused.py` starts it, prints JSON."""

from __future__ import annotations

import json
import os
import sys

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import torch.nn.functional as F

from mergevq.kernels import group_norm
from mergevq.kernels.group_norm import ChannelsLastGroupNorm

CASES = {  # batch, channels, height, width, groups, terms of each image, SiLU, mean
    "several tiles, several chunks": (2, 64, 40, 50, 32, False, True, 1.0),
    "channels that are no power of two": (3, 48, 4, 7, 8, True, False, 0.0),
    "fewer pixels than a tile": (2, 16, 3, 3, 4, True, True, 3.0),
    "a mean of a thousand deviations": (1, 32, 9, 9, 32, False, True, 1000.0),
    "a single pixel": (2, 32, 1, 1, 4, False, False, 0.0),
}


def errors(case: str, dtype: torch.dtype, device: str = "cpu") -> list[float]:
    """The largest error of output and gradients, as shares of the largest value, against float64."""
    batch, channels, height, width, groups, by_image, silu, mean = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(batch, channels, height, width, generator=generator) + mean).to(device, dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    shape = (batch, channels) if by_image else (channels,)
    weight, bias = (torch.randn(shape, generator=generator).to(device).requires_grad_() for _ in range(2))
    out = ChannelsLastGroupNorm.apply(x, weight, bias, groups, 1e-6, silu, dtype)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out.dtype == dtype
    grad = torch.randn(out.shape, generator=generator).to(device, dtype)
    found = (out, *torch.autograd.grad(out, (x, weight, bias), grad))
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    scale, shift = (t[..., None, None] for t in exact[1:])
    wanted = F.group_norm(exact[0], groups, eps=1e-6) * scale + shift
    wanted = F.silu(wanted) if silu else wanted
    gradients = torch.autograd.grad(wanted, exact, grad.double())
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-3)).item()
        for a, b in zip(found, (wanted, *gradients), strict=True)
    ]


if __name__ == "__main__":
    from mergevq.kernels import group_norm_triton

    group_norm._passes = lambda x: group_norm_triton  # the GPU's, on a CPU
    group_norm_triton.CHUNKS = 4  # so that a small map, too, has several tiles in a chunk
    json.dump({case: errors(case, torch.float32) for case in CASES}, sys.stdout)
