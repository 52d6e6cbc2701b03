"""What a step of decoding does between its matrix products, on a CPU: `decoding.cpp`.

Rows are few: PyTorch's operations, each over in a moment, cost more to call than to do. All take float32 and bfloat16, compute in
float32, and take no gradient. Generators in float32 do without them and have PyTorch's results.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import byref, c_double, c_int, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from mergevq.kernels import compiled

MOST_VALUES = 1 << 17  # of a tensor; larger ones are worth PyTorch's threads
MOST_TOKENS = 16  # of a sequence that attends; more are worth its matrix products


class _Sizes(ctypes.Structure):
    _fields_ = [
        (name, c_int64)
        for name in (
            *("batch", "tokens", "heads", "width", "slots", "visible"),
            *("rotation_stride", "slot_stride", "mask_stride"),
        )
    ]


def takes(x: Tensor) -> bool:
    """Whether `rms_norm` and `swiglu` are the way for x: few values in bfloat16 on a CPU, without gradients."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and x.numel() <= MOST_VALUES
        and x.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(x) in (Tensor, torch.nn.Parameter)  # others have no memory to be read
        and _library() is not None
    )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D) over the root of its mean square, times `weight` (D,)."""
    assert weight.shape == x.shape[-1:]
    out = torch.empty_like(x)
    weight = (weight if weight.dtype == x.dtype else weight.float()).contiguous()
    width = x.shape[-1]
    types = compiled.DTYPES.index(x.dtype), compiled.DTYPES.index(weight.dtype)
    where = x.data_ptr(), weight.data_ptr(), out.data_ptr()
    _done(_of("decoding_rms_norm")(*types, *where, x.numel() // max(width, 1), width, eps))
    return out


def swiglu(gate_up: Tensor) -> Tensor:
    """Gate and up (..., 2 D) -> silu(gate) * up (..., D)."""
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    rows = gate_up.numel() // max(2 * width, 1)
    _done(
        _of("decoding_swiglu")(
            compiled.DTYPES.index(out.dtype), gate_up.data_ptr(), out.data_ptr(), rows, width
        )
    )
    return out


def takes_cache(
    qkv: Tensor, keys: Tensor, values: Tensor, rotation: Tensor | None, mask: Tensor | None
) -> bool:
    """Whether `attend` takes these, see there."""
    return (
        takes(qkv)
        and qkv.shape[1] <= MOST_TOKENS
        and keys.dtype == values.dtype == qkv.dtype
        and keys.is_contiguous()
        and values.is_contiguous()
        and (rotation is None or rotation.dtype == torch.float32)
        and (mask is None or mask.dtype == torch.bool)
    )


def attend(
    qkv: Tensor,
    rotation: Tensor | None,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    visible: int,
    mask: Tensor | None,
) -> Tensor:
    """Write new tokens to a cache, and their attention to it: (B, T, 3, heads, d) -> (B, T, heads * d).

    Queries and keys are turned by `rotation` ((B,) T, 2, d) float32, see `rotate`; keys and values go to `slots`
    ((B,) T) int64 of `keys` and `values` (B, heads, slots, d). Each token sees the first `visible` slots, or those of them that `mask`
    ((B,) T, visible) bool allows, of which there is at least one.
    """
    batch, tokens, _, heads, width = qkv.shape
    assert keys.shape == values.shape == (batch, heads, keys.shape[2], width)
    assert slots.dtype == torch.int64
    assert slots.shape[-1] == tokens
    visible = min(visible, keys.shape[2])
    held = [
        None if part is None else part.contiguous()
        for part in (
            rotation,
            slots,
            None if mask is None else mask.expand(*mask.shape[:-2], tokens, visible),
        )
    ]
    strides = [
        0 if part is None or part.ndim == own or part.shape[0] == 1 else part.stride(0)
        for part, own in zip(held, (3, 1, 2), strict=True)
    ]
    sizes = _Sizes(batch, tokens, heads, width, keys.shape[2], visible, *strides)
    turning, to, seen = (None if part is None else part.data_ptr() for part in held)
    out = qkv.new_empty(batch, tokens, heads * width)
    where = qkv.data_ptr(), turning, keys.data_ptr(), values.data_ptr(), to, seen, out.data_ptr()
    number = compiled.DTYPES.index(qkv.dtype)
    _done(_of("decoding_attend")(number, *where, byref(sizes), torch.get_num_threads()))
    return out


@cache
def _library() -> ctypes.CDLL | None:
    library = compiled.library("decoding")
    if library is not None:
        pointer = c_void_p
        library.decoding_rms_norm.argtypes = [c_int, c_int, *[pointer] * 3, c_int64, c_int64, c_double]
        library.decoding_swiglu.argtypes = [c_int, *[pointer] * 2, c_int64, c_int64]
        library.decoding_attend.argtypes = [c_int, *[pointer] * 8, c_int]
    return library


@cache
def _of(name: str) -> Callable[..., int]:
    return getattr(_library(), name)


def _done(status: int) -> None:
    if status:
        raise RuntimeError("a step of decoding found no memory, or a slot that the cache does not have")
