"""Precision and memory layout where a recipe leaves them to the machine (`auto`)."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from mergevq.kernels import group_norm_cpu

UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}  # flags of processors, the faster first


@dataclass(frozen=True)
class MachineChoice:
    """What `auto` stands for on this machine, and why."""

    precision: Literal["float32", "bfloat16"]
    reason: str
    on_gpu: bool

    def keeps_layout(self, precision: str) -> bool:
        """Whether maps in channels-last memory are faster in this precision: where norms keep it.

        On a GPU in half precision; on a CPU in bfloat16, where ours can be compiled, which is tried now.
        """
        if self.on_gpu:
            return precision != "float32"
        return precision == "bfloat16" and group_norm_cpu.available()


def choose(device: str) -> MachineChoice:
    """Precision for a recipe's `cluster.device`: of this machine's GPU, where that may train, else of its processor.

    bfloat16 where it is multiplied in hardware.
    """
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        return MachineChoice("bfloat16", "GPUs multiply it", on_gpu=True)
    if unit := bfloat16_unit():
        return MachineChoice("bfloat16", f"this processor multiplies it ({unit})", on_gpu=False)
    lack = "this processor multiplies no bfloat16, it has neither AMX nor AVX512-BF16"
    return MachineChoice("float32", lack, on_gpu=False)


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
