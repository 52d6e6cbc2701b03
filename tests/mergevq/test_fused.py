"""Group norm with what follows it: PyTorch's numbers where there is no kernel, and the kernels' own errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mergevq.fused import adaptive_norm, has_kernel, has_norm_kernel, norm_silu
from mergevq.kernels import group_norm_cpu
from mergevq.layers import GroupNorm
from tests.mergevq import interpreted_group_norm
from tests.mergevq.interpreted_group_norm import CASES


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


@pytest.fixture
def compiled_norm() -> None:
    if not group_norm_cpu.available():
        pytest.skip("no C++ compiler is here")


@pytest.mark.usefixtures("compiled_norm")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_compiled_passes_are_the_norm_and_its_gradient(case: str, dtype: torch.dtype) -> None:
    found = interpreted_group_norm.errors(case, dtype)
    exact = 5e-4 if "thousand" in case else 2e-6
    assert max(found) < (exact if dtype == torch.float32 else 1e-2), found
    assert max(found[2:]) < max(exact, 2e-5), "gradients of weight and bias are float32 sums"


def channels_last(*shape: int, mean: float = 0.0) -> torch.Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) + mean
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("compiled_norm")
def test_no_result_depends_on_the_number_of_threads() -> None:
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            x = channels_last(3, 24, 70, 31, mean=2.0).requires_grad_()
            norm = GroupNorm(8, 24)
            with torch.autocast("cpu", torch.bfloat16):
                out = norm_silu(norm, x)
            found.append((out, *torch.autograd.grad(out.square().sum(), (x, norm.weight, norm.bias))))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("compiled_norm")
def test_under_autocast_a_map_is_half_as_large_and_stays_channels_last() -> None:
    x, norm = channels_last(2, 64, 9, 7), GroupNorm(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert has_norm_kernel(x)
        out = norm_silu(norm, x)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out.float(), norm_silu(norm, x), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("compiled_norm")
def test_shapes_that_do_not_fit_are_pytorchs_to_refuse_and_to_spread() -> None:
    x = channels_last(2, 24, 5, 4).bfloat16()
    with pytest.raises(RuntimeError, match="weight"):
        norm_silu(GroupNorm(8, 16), x)
    plain = GroupNorm(8, 24, affine=False)
    assert torch.equal(norm_silu(plain, x), F.silu(plain(x)))
    one = torch.rand(1, 24).bfloat16()
    assert torch.equal(
        adaptive_norm(plain, x, one, one), plain(x) * one[..., None, None] + one[..., None, None]
    )


@pytest.mark.usefixtures("compiled_norm")
def test_another_default_type_changes_nothing() -> None:
    x, norm = channels_last(2, 8, 6, 5).bfloat16().requires_grad_(), GroupNorm(2, 8)
    found = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            out = norm_silu(norm, x)
            found.append((out, *torch.autograd.grad(out.sum(), (x, norm.weight))))
        finally:
            torch.set_default_dtype(torch.float32)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.usefixtures("compiled_norm")
def test_what_is_not_finite_is_not_hidden() -> None:
    x = channels_last(2, 8, 40, 40).bfloat16()
    x[0, 3, 5, 5] = torch.nan
    out = norm_silu(GroupNorm(2, 8), x)
    assert out[0, :4].isnan().all()
    assert out[0, 4:].isfinite().all()
    assert out[1].isfinite().all()
    x[0, 3, 5, 5] = 1e30  # squared it is infinite
    assert norm_silu(GroupNorm(2, 8), x)[1].isfinite().all()


@pytest.mark.usefixtures("compiled_norm")
def test_of_what_is_contiguous_and_of_other_types_there_is_no_compiled_norm() -> None:
    assert has_norm_kernel(channels_last(2, 8, 3, 5).bfloat16())
    assert not has_norm_kernel(channels_last(2, 8, 3, 5)), "float32 has the results of before"
    assert not has_norm_kernel(channels_last(2, 8, 3, 5).bfloat16().contiguous())
    assert not has_norm_kernel(channels_last(2, 8, 1, 1).bfloat16()), "both layouts at once"
    assert not has_norm_kernel(channels_last(2, 8, 3, 5).half())
    with torch.autocast("cpu", torch.float16):
        assert not has_norm_kernel(channels_last(2, 8, 3, 5))


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
