"""The passes of `group_norm` on a CPU: `group_norm.cpp`, on as many threads as PyTorch uses.

Statistics are those of tiles, merged in double as Chan, Golub and LeVeque 1983; no result depends on the number of threads.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_double, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from mergevq.kernels import compiled
from mergevq.kernels.terms import Terms


class _Map(ctypes.Structure):
    _fields_ = [(name, c_int64) for name in ("batch", "pixels", "channels", "groups")]


class _Terms(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("mean", "rstd", "weight", "bias")] + [("stride", c_int64)]


def available() -> bool:
    """Whether the passes could be compiled here; tries it at the first call."""
    return compiled.library("group_norm") is not None


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool, out: Tensor
) -> Terms:
    """Write the norm of x (B, C, H, W) channels-last to `out`; returns the terms that it was computed with."""
    mean, rstd = torch.empty(2, len(x), groups, dtype=torch.float32)
    terms = Terms(mean, rstd, weight, bias)
    held, described = _described(terms)
    numbers = (c_int(silu), *_number(x, out))
    _call("group_norm_forward", *numbers, _at(x), _map(x, groups), described, c_double(eps), _at(out))
    del held
    return terms


def backward(x: Tensor, grad: Tensor, terms: Terms, silu: bool) -> tuple[Tensor, Tensor]:
    """The gradient of x; and (2, B, C) float32, sums over pixels: of dz, the gradient before SiLU, and of dz times the normed value."""
    sums = torch.empty(2, *x.shape[:2], dtype=torch.float32)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    held, described = _described(terms)
    numbers = (c_int(silu), *_number(x, grad))
    shape = _map(x, terms.mean.shape[1])
    _call("group_norm_backward", *numbers, _at(x), _at(grad), shape, described, _at(sums), _at(out))
    del held
    return out, sums


def _call(name: str, *arguments: object) -> None:
    passes = compiled.library("group_norm")
    assert passes is not None
    if passes[name](*arguments, c_int(torch.get_num_threads())):
        raise MemoryError(f"{name}: no memory for the sums of its spans")


def _map(x: Tensor, groups: int) -> object:
    batch, channels, height, width = x.shape
    return byref(_Map(batch, height * width, channels, groups))


def _described(terms: Terms) -> tuple[list[Tensor], object]:
    """Float32 copies of the terms where they need them, to be held during the call, and what C++ reads."""
    held = [part.float().contiguous() for part in terms]
    return held, byref(_Terms(*(part.data_ptr() for part in held), terms.image_stride))


def _number(*maps: Tensor) -> list[c_int]:
    return [c_int(compiled.DTYPES.index(part.dtype)) for part in maps]


def _at(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
