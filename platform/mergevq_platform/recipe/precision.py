"""Precision and memory layout where a recipe leaves them to the machine (`auto`)."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from mergevq.kernels import compiled

UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # flags of processors, the faster first


class Chosen(NamedTuple):
    """What `auto` stands for, and why."""

    precision: Literal["float32", "bfloat16"]
    channels_last: bool
    reason: str


def choose(device: str) -> Chosen:
    """Precision and layout for a recipe's `cluster.device`: of this machine's processor, unless it is `cuda`.

    bfloat16 where it is multiplied in hardware; then maps in channels-last memory, in which convolutions are fastest, if
    norms keep it: on a GPU, or with a C++ compiler, which compiles ours.
    """
    if device == "cuda":
        return Chosen("bfloat16", True, "GPUs multiply it")
    unit = bfloat16_unit()
    if unit is None:
        return Chosen(
            "float32", False, "this processor multiplies no bfloat16, it has neither AMX nor AVX512-BF16"
        )
    if compiled.compiler() is None:
        return Chosen(
            "bfloat16",
            False,
            f"this processor multiplies it ({unit}); with a C++ compiler it would be faster",
        )
    return Chosen("bfloat16", True, f"this processor multiplies it ({unit})")


@cache
def bfloat16_unit() -> str | None:
    """The part of this processor that multiplies bfloat16, by name; None where there is none or it is not known."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return next((name for flag, name in UNITS.items() if flag in flags), None)
