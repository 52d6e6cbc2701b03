"""Group norm with what follows it: PyTorch's numbers where there is no kernel, and the kernels' own errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mergevq.fused import adaptive_norm, has_kernel, norm_silu
from mergevq.layers import GroupNorm


def interpreted(script: str) -> dict[str, list[float]]:
    """The errors by case that a script of this folder prints."""
    pytest.importorskip("triton", reason="a CPU build of PyTorch brings no Triton")
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_kernels_are_the_norm_and_its_gradient() -> None:
    errors = interpreted("interpreted_group_norm.py")
    assert len(errors) == 5
    for case, found in errors.items():
        # A mean of 1,000 deviations leaves 1e-4 of a deviation to float32 values themselves.
        assert max(found) < (5e-4 if "thousand" in case else 2e-6), (case, found)


def test_the_kernels_are_the_distance_of_unit_vectors_and_its_gradient() -> None:
    errors = interpreted("interpreted_unit_distance.py")
    assert len(errors) == 4
    for case, found in errors.items():
        assert max(found) < 2e-6, (case, found)


def test_without_a_kernel_it_is_pytorchs_own() -> None:
    x = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(0))
    norm = GroupNorm(4, 8)
    assert not has_kernel(x)
    assert torch.equal(norm_silu(norm, x), F.silu(norm(x)))
    scale, shift = torch.rand(2, 2, 8).unbind(0)
    plain = GroupNorm(4, 8, affine=False)
    assert torch.equal(
        adaptive_norm(plain, x, scale, shift), plain(x) * scale[..., None, None] + shift[..., None, None]
    )
