"""Errors of the unit distance's kernels, run by Triton's interpreter on a CPU: `test_fused.py` starts it, prints JSON."""

from __future__ import annotations

import json
import os
import sys

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch

from mergevq.fused import SQUARE_FLOOR, unit_channels, weighted_mean
from mergevq.kernels.unit_distance import ChannelsLastUnitDistance

CASES = {  # batch, channels, height, width, share of dead pixels
    "several tiles": (2, 64, 9, 15, 0.0),
    "channels that are no power of two": (3, 48, 4, 7, 0.0),
    "pixels without features": (2, 16, 5, 5, 0.4),
    "a single pixel": (2, 32, 1, 1, 0.0),
}


def errors(case: str, dtype: torch.dtype, device: str = "cpu") -> list[float]:
    """The largest error of output and gradient, as shares of the largest value, against float64."""
    batch, channels, height, width, dead = CASES[case]
    generator = torch.Generator().manual_seed(0)
    shape = (batch, channels, height, width)
    alive = torch.rand(batch, 1, height, width, generator=generator) >= dead
    found, wanted = (
        (torch.randn(shape, generator=generator) * alive)
        .to(device, dtype)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    weight = torch.rand(channels, generator=generator).to(device)
    found.requires_grad_()
    out = ChannelsLastUnitDistance.apply(found, wanted, weight, SQUARE_FLOOR)
    assert out.dtype == torch.float32
    grad = torch.randn(out.shape, generator=generator).to(device)
    (gradient,) = torch.autograd.grad(out, found, grad)
    assert gradient.dtype == dtype
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    exact = found.detach().double().requires_grad_()
    difference = (_unit(exact) - _unit(wanted.double())).square() * weight.double().view(1, -1, 1, 1)
    distance = difference.sum(1).mean((1, 2))
    (slope,) = torch.autograd.grad(distance, exact, grad.double())
    plain = weighted_mean((unit_channels(found) - unit_channels(wanted)).square(), weight)
    pairs = ((out, distance), (gradient, slope), (plain, distance))
    return [((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-6)).item() for a, b in pairs]


def _unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().sum(1, keepdim=True) + SQUARE_FLOOR).sqrt()


if __name__ == "__main__":
    json.dump({case: errors(case, torch.float32) for case in CASES}, sys.stdout)
