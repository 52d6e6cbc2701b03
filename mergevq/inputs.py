"""Checks of a tokenizer's inputs: images, indices, codes, source. The message says what was given instead."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.merging import Source

FURTHEST = 2.0  # bicubic resampling of values in [-1, 1] stays below 1.9; ImageNet's normalisation does not
IMAGES = "images must be (B, 3, H, W) float in [-1, 1]; these are"


def check_images(images: Tensor, like: Tensor) -> None:
    """Raise `InputError` unless `images` are (B, 3, H, W), of the dtype and on the device of the weights `like`.

    Under autocast half precision and float32 may stand for each other. Looks at no value.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"{IMAGES} a {_kind(images)}: make a tensor of them")
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] != 3:
        raise InputError(f"{IMAGES} {shape}: {_other_layout(shape)}")
    if not images.is_floating_point():
        fix = "images / 127.5 - 1" if images.dtype == torch.uint8 else "make them float"
        raise InputError(f"{IMAGES} {shape} {_name(images.dtype)}: {fix}")
    if images.layout != torch.strided:
        raise InputError(f"{IMAGES} {_name(images.layout)}: images.to_dense()")
    _check_dtype_and_device(images, like, IMAGES, "images")


def check_image_values(images: Tensor, like: Tensor) -> None:
    """As `check_images`, and for NaN, and for values beyond ±2, which no resampling of images in [-1, 1] reaches.

    Waits for the device. Passes over values that cannot be read: within a CUDA graph, a compiled program, or without
    memory (`meta`).
    """
    check_images(images, like)
    if images.numel() == 0 or not readable(images):
        return
    low, high = torch.stack(torch.aminmax(images.detach())).tolist()
    if math.isnan(low) or math.isnan(high):
        raise InputError(f"{IMAGES} partly NaN: correct what made them")
    if low < -FURTHEST or high > FURTHEST:
        fix = "images / 127.5 - 1" if low >= 0 and high <= 255 else "scale them to it"
        raise InputError(f"{IMAGES} within [{low:.4g}, {high:.4g}]: {fix}")


def whole_count(keep: Any) -> int:
    """`keep` as the one whole number that it is. Raises `InputError` for anything else, such as a count for every image."""
    found = _whole_number(keep)
    if found is None:
        raise InputError(
            f"keep must be one whole number for all images; this is {keep!r}: call once for each count"
        )
    return found


def kept_counts(keep: Any, batch: int, *, name: str = "keep") -> int | list[int]:
    """One count for all images, or one for each of `batch`: a sequence or tensor (B,) of whole numbers.

    Waits for the device of a tensor. Raises `InputError` for anything else, and for another number of counts.
    """
    one = _whole_number(keep)
    if one is not None:
        return one
    try:
        counts = [_whole_number(count) for count in (keep.tolist() if isinstance(keep, Tensor) else keep)]
    except TypeError:
        counts = [None]
    found = [count for count in counts if count is not None]
    if len(found) < len(counts):
        raise InputError(
            f"{name} must be one whole number for all images, or one for each; this is {keep!r}: give whole numbers"
        )
    if len(found) != batch:
        raise InputError(
            f"{name} has {len(found)} numbers for {batch} images: give one for all, or one for each"
        )
    return found


def check_codes(codes: Tensor, channels: int, like: Tensor) -> None:
    """Raise `InputError` unless `codes` are (B, K, G) float of `channels` G, where the weights `like` are. Looks at no value."""
    expected = f"codes must be (B, K, {channels}) float; these are"
    if not isinstance(codes, Tensor):
        raise InputError(f"{expected} a {_kind(codes)}: make a tensor of them")
    if codes.ndim != 3 or codes.shape[-1] != channels or not codes.is_floating_point():
        fix = "give indices to decode_indices" if codes.dtype == torch.int64 else "give those of `encode`"
        raise InputError(f"{expected} {tuple(codes.shape)} {_name(codes.dtype)}: {fix}")
    _check_dtype_and_device(codes, like, expected, "codes")


def check_index_layout(indices: Tensor, like: Tensor) -> None:
    """Raise `InputError` unless `indices` are (B, K) int64 where the weights `like` are, K at least 1. Looks at no value."""
    expected = "code indices must be (B, K) int64; these are"
    if not isinstance(indices, Tensor):
        raise InputError(f"{expected} a {_kind(indices)}: make a tensor of them")
    if indices.ndim != 2 or indices.dtype != torch.int64:
        fix = "indices.long()" if indices.ndim == 2 and _whole(indices.dtype) else "give those of `encode`"
        raise InputError(f"{expected} {tuple(indices.shape)} {_name(indices.dtype)}: {fix}")
    if indices.shape[1] == 0:
        raise InputError(f"{expected} {tuple(indices.shape)}, of no kept tokens: give those of `encode`")
    _check_device(indices, like, expected, "indices")


def check_source(source: Source, of: Tensor) -> None:
    """Raise `InputError` unless the source belongs to the codes or indices `of` (B, K, …) and knows its rows and columns.

    Looks at no value.
    """
    batch, keep = of.shape[:2]
    if not isinstance(source, Source):
        raise InputError(f"source must be a mergevq.Source; this is a {_kind(source)}: give that of `encode`")
    for name, part in (("assignment", source.assignment), ("size", source.size)):
        if not isinstance(part, Tensor):
            raise InputError(
                f"source.{name} must be a tensor; this is a {_kind(part)}: give that of `encode`"
            )
    assignment = source.assignment
    shape = tuple(assignment.shape)
    if assignment.ndim != 2 or shape[1] == 0 or assignment.dtype != torch.int64:
        raise InputError(
            f"source.assignment must be (B, N) int64, N at least 1; this is {shape} {_name(assignment.dtype)}: "
            "give that of `encode`"
        )
    _ = source.rows  # raises where rows and columns are not known, or have another number of cells
    if shape[0] != batch or tuple(source.size.shape) != (batch, keep):
        raise InputError(
            f"the source is of {shape[0]} images of {source.size.shape[-1]} tokens, the codes of {batch} of {keep}: "
            "give those of one `encode`"
        )
    if assignment.device != of.device:
        raise InputError(
            f"the source is on {assignment.device}, the codes on {of.device}: bring both to one device"
        )


def check_source_values(source: Source, keep: int | list[int]) -> None:
    """Raise `InputError` unless every cell went to one of `keep` tokens, of so many in each image. Waits for the device."""
    assignment = source.assignment
    if assignment.numel() == 0 or not readable(assignment):
        return
    lows, highs = (end.tolist() for end in torch.aminmax(assignment, dim=1))
    counts = [keep] * len(lows) if isinstance(keep, int) else keep
    for low, high, count in zip(lows, highs, counts, strict=True):
        if low < 0 or high >= count:
            raise InputError(
                f"source.assignment must lie in 0..{count - 1}, the kept tokens; it reaches from {low} to {high}: "
                "give that of `encode`"
            )


def check_encoded(encoded: Any, kind: type) -> None:
    """Raise `InputError` unless `encoded` is what `encode` returns, of type `kind`."""
    if not isinstance(encoded, kind):
        raise InputError(
            f"decode takes what `encode` returns; this is a {_kind(encoded)}: give indices to decode_indices, codes to "
            "decode_codes"
        )


def readable(values: Tensor) -> bool:
    """Whether the host may look at values now."""
    if torch.compiler.is_compiling() or values.device.type == "meta":
        return False
    return not (values.device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def _check_dtype_and_device(values: Tensor, like: Tensor, expected: str, name: str) -> None:
    _check_device(values, like, expected, name)
    both, kind = {values.dtype, like.dtype}, values.device.type
    if len(both) == 1:
        return
    # Autocast brings float32 and its own half precision together, and nothing else.
    if torch.is_autocast_enabled(kind) and both <= {torch.float32, torch.get_autocast_dtype(kind)}:
        return
    raise InputError(
        f"{expected} {_name(values.dtype)}, the weights {_name(like.dtype)}: {name}.to({like.dtype})"
    )


def _check_device(values: Tensor, like: Tensor, expected: str, name: str) -> None:
    if values.device != like.device:
        raise InputError(
            f"{expected} on {values.device}, the weights on {like.device}: {name}.to('{like.device}')"
        )


def _other_layout(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] == 3:
        return "add the batch, images[None]"
    if len(shape) == 4 and shape[-1] == 3:
        return "channels go before height and width, images.permute(0, 3, 1, 2)"
    if len(shape) == 4 and shape[1] == 1:
        return "repeat grey, images.expand(-1, 3, -1, -1)"
    if len(shape) == 4 and shape[1] == 4:
        return "lay them over a background, without alpha"
    return "bring them into this shape"


def _whole_number(value: Any) -> int | None:
    if type(value) is int:
        return value
    try:
        return operator.index(value)  # NumPy's integers, and a tensor of one
    except (TypeError, ValueError, RuntimeError):
        return None


def _whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def _name(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
