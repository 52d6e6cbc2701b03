"""A decoding step's compiled parts on a CPU: PyTorch's numbers, and codes that do not depend on them but for rounding."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq import huge_pages
from mergevq.generation import build_generator, generator_preset, sample
from mergevq.generation.rotary import rotate
from mergevq.kernels import compiled, decoding_cpu

pytestmark = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler is here")
ERRORS = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # as shares of the largest value
BATCH, HEADS, WIDTH, SLOTS, VISIBLE = 3, 2, 24, 20, 11


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("width", [1, 17, 768])
def test_norm_and_product_are_those_of_float64(dtype: torch.dtype, width: int) -> None:
    x, weight = drawn(4, 2, width, dtype=dtype), drawn(width, seed=1)
    for factor in (weight, weight.to(dtype)):
        wanted = F.rms_norm(x.double(), (width,), factor.double(), 1e-5)
        assert error(decoding_cpu.rms_norm(x, factor, 1e-5), wanted) < ERRORS[dtype]
    both = 20 * drawn(4, 2, 2 * width, seed=2, dtype=dtype)
    gate, up = both.double().chunk(2, -1)
    assert error(decoding_cpu.swiglu(both), F.silu(gate) * up) < ERRORS[dtype]


@torch.no_grad()
@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("case", ["plain", "turned", "masked", "of each image"])
@pytest.mark.parametrize("tokens", [1, 4])
def test_attention_to_the_cache_is_pytorchs(dtype: torch.dtype, case: str, tokens: int) -> None:
    qkv = drawn(BATCH, tokens, 3, HEADS, WIDTH, dtype=dtype)
    keys, values = (drawn(BATCH, HEADS, SLOTS, WIDTH, seed=seed, dtype=dtype) for seed in (1, 2))
    generator = torch.Generator().manual_seed(3)
    slots = torch.stack([torch.randperm(VISIBLE, generator=generator)[:tokens] for _ in range(BATCH)])
    mask = torch.rand(BATCH, tokens, VISIBLE, generator=generator) > 0.4
    mask[..., 0] = True
    rotation = drawn(BATCH, tokens, 2, WIDTH, seed=4)
    given: dict[str, tuple[Tensor | None, Tensor, Tensor | None]] = {
        "plain": (None, slots[0], None),
        "turned": (rotation[0], slots[0], None),
        "masked": (rotation[0], slots[0], mask[:1]),
        "of each image": (rotation, slots, mask),
    }
    turn, to, seen = given[case]
    queries_keys = qkv[:, :, :2] if turn is None else rotate(qkv[:, :, :2], turn[..., None, None, :, :])
    wanted_keys, wanted_values = keys.clone(), values.clone()
    index = to.expand(BATCH, tokens)[:, None, :, None].expand(BATCH, HEADS, tokens, WIDTH)
    wanted_keys.scatter_(2, index, queries_keys[:, :, 1].transpose(1, 2))
    wanted_values.scatter_(2, index, qkv[:, :, 2].transpose(1, 2))
    out = F.scaled_dot_product_attention(
        queries_keys[:, :, 0].transpose(1, 2).double(),
        wanted_keys[:, :, :VISIBLE].double(),
        wanted_values[:, :, :VISIBLE].double(),
        attn_mask=None if seen is None else seen[:, None],
    )
    assert decoding_cpu.takes_cache(qkv, keys, values, turn, seen) == (dtype == torch.bfloat16)
    found = decoding_cpu.attend(qkv, turn, keys, values, to, VISIBLE, seen)
    assert error(found, out.transpose(1, 2).flatten(2)) < ERRORS[dtype]
    assert error(keys, wanted_keys.double()) < ERRORS[dtype]
    assert torch.equal(values, wanted_values)


@torch.no_grad()
def test_of_what_is_large_of_another_type_or_differentiable_they_take_nothing() -> None:
    few = drawn(8, 1, 64).bfloat16()
    assert decoding_cpu.takes(few)
    assert not decoding_cpu.takes(few.half())
    assert not decoding_cpu.takes(few.float()), "float32 has the results of before"
    assert not decoding_cpu.takes(drawn(600, 256).bfloat16())
    assert not decoding_cpu.takes(drawn(8, 64).bfloat16().T)
    with torch.enable_grad():
        assert not decoding_cpu.takes(few)
    with torch.autocast("cpu", torch.bfloat16):
        assert not decoding_cpu.takes(few)


@pytest.mark.parametrize("name", ["tiny_raster", "tiny_mergear", "tiny_random_order"])
def test_the_same_codes_are_drawn_without_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    generator = build_generator(generator_preset(name)).eval()
    with torch.no_grad():
        for head in generator.tokens.heads:
            head.get_parameter("weight").normal_(std=0.02)
    calls: list[Any] = []
    attend = decoding_cpu.attend

    def counted(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return attend(*arguments)

    monkeypatch.setattr(decoding_cpu, "attend", counted)
    labels, ids = torch.arange(4) % generator.config.classes, torch.arange(4)
    keep = None if name == "tiny_raster" else 25

    def codes() -> Tensor:
        return sample(generator, labels, sample_ids=ids, seed=1, keep=keep).indices

    without = codes()
    assert not calls, "float32 does without"
    # In float32 all the same: rounding of bfloat16 would make other codes soon.
    monkeypatch.setattr(decoding_cpu, "takes", lambda x: x.is_contiguous() and not torch.is_grad_enabled())
    assert (codes() == without).float().mean() > 0.98, (
        "a draw at the very edge of two codes may fall either way"
    )
    assert calls
    generator.bfloat16()
    monkeypatch.undo()
    assert codes().shape == without.shape


@torch.no_grad()
def test_a_slot_that_the_cache_does_not_have_is_refused() -> None:
    qkv = drawn(BATCH, 1, 3, HEADS, WIDTH, dtype=torch.bfloat16)
    keys, values = (drawn(BATCH, HEADS, SLOTS, WIDTH, dtype=torch.bfloat16) for _ in range(2))
    for slot in (SLOTS, -1):
        with pytest.raises(RuntimeError, match="a slot that the cache does not have"):
            decoding_cpu.attend(qkv, None, keys, values, torch.tensor([slot]), VISIBLE, None)


def test_memory_on_huge_pages_keeps_its_values() -> None:
    values = torch.arange(3 << 20)
    on_huge_pages = huge_pages.collapse()
    assert on_huge_pages % huge_pages.PAGE == 0
    allowed = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    kernel = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    if kernel >= (6, 1) and allowed.is_file() and "[never]" not in allowed.read_text():
        assert on_huge_pages > 0
    assert torch.equal(values, torch.arange(3 << 20))
