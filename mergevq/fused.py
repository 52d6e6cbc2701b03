"""Chains of operations on maps, by one kernel where there is one: channels-last maps on an NVIDIA GPU, norms also on a CPU."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.kernels import compiled, group_norm_cpu
from mergevq.kernels.group_norm import ChannelsLastGroupNorm

SQUARE_FLOOR = 1e-20  # below the square of any length that counts
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU of the group norm of (B, C, H, W), in its layout.

    The kernel computes in float32 and writes autocast's dtype, as the convolution that follows would cast to.
    """
    if not (has_norm_kernel(x) and norm.affine and x.shape[1] == norm.num_channels):
        return F.silu(norm(x))
    return _by_kernel(norm, x, norm.weight, norm.bias, silu=True)


def adaptive_norm(norm: nn.GroupNorm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The group norm of (B, C, H, W) times `scale` plus `shift`, each (B, C), in its layout; dtypes as for `norm_silu`."""
    if not (
        has_norm_kernel(x) and scale.shape == shift.shape == x.shape[:2] and x.shape[1] == norm.num_channels
    ):
        return norm(x) * scale[..., None, None] + shift[..., None, None]
    return _by_kernel(norm, x, scale, shift, silu=False)


def unit_distance(found: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """The distance (B,) float32 of maps (B, C, H, W), for which `wanted` takes no gradient.

    The mean over pixels of sum_c weight_c (f_c / |f| - w_c / |w|)^2, `weight` (C,): LPIPS of one layer.
    """
    if not has_kernel(found) or not has_kernel(wanted) or found.dtype != wanted.dtype:
        difference = (unit_channels(found) - unit_channels(wanted)).square()
        return weighted_mean(difference, weight)
    from mergevq.kernels.unit_distance import ChannelsLastUnitDistance

    return ChannelsLastUnitDistance.apply(found, wanted, weight.contiguous(), SQUARE_FLOOR)


def unit_channels(features: Tensor) -> Tensor:
    """Maps (B, C, ...) -> float32 whose channels are a unit vector at each place; zeros stay zeros."""
    features = features.float()
    # The root of a sum with 1e-20 inside, not LPIPS's norm plus 1e-10: equal to rounding, but its gradient at
    # a dead position (zero features) is zero and not NaN.
    return features / (features.square().sum(1, keepdim=True) + SQUARE_FLOOR).sqrt()


def weighted_mean(maps: Tensor, weight: Tensor) -> Tensor:
    """Maps (B, C, H, W) float32 -> (B,): the mean over pixels of the sum over channels, weighted by `weight` (C,)."""
    return (maps * weight.float().view(1, -1, 1, 1)).sum(1).mean((1, 2))


def has_kernel(x: Tensor) -> bool:
    """Whether a kernel takes maps such as `x`; without one PyTorch computes the same."""
    return x.is_cuda and x.dtype in KERNEL_DTYPES and _is_channels_last(x) and _has_triton()


def has_norm_kernel(x: Tensor) -> bool:
    """Whether norms of maps such as `x` are by kernel: as `has_kernel`, and on a CPU with a C++ compiler where bfloat16 comes or goes.

    Float32 has PyTorch's results there, in whatever layout, and what is contiguous as well, a map of one pixel or channel.
    """
    if x.device.type != "cpu":
        return has_kernel(x)
    dtypes = {x.dtype, _result_dtype(x)}
    if torch.bfloat16 not in dtypes or not _is_channels_last(x) or x.is_contiguous():
        return False
    return dtypes <= set(compiled.DTYPES) and group_norm_cpu.available()


def _is_channels_last(x: Tensor) -> bool:
    return (
        x.ndim == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(x) in (Tensor, nn.Parameter)  # others have no memory to be read
    )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _result_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _by_kernel(norm: nn.GroupNorm, x: Tensor, weight: Tensor, bias: Tensor, *, silu: bool) -> Tensor:
    return ChannelsLastGroupNorm.apply(
        x, weight.contiguous(), bias.contiguous(), norm.num_groups, norm.eps, silu, _result_dtype(x)
    )
