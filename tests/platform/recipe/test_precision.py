"""`auto`: precision and memory layout of the machine at hand, written out once, before anything is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mergevq.config import to_tree
from mergevq.kernels import group_norm_cpu
from mergevq_platform import recipe
from mergevq_platform.recipe import precision
from mergevq_platform.sweeps.loading import from_dimensions

WITHOUT_TEACHER = ("task.losses.alignment={kind: none}",)
AUTO = {"precision": "auto", "channels_last": "auto"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the processor multiplies bfloat16 with, whether norms can be compiled, and whether there is a GPU."""

    def is_one(unit: str | None, *, compiles: bool = True, gpu: bool = False) -> None:
        monkeypatch.setattr(precision, "bfloat16_unit", lambda: unit)
        monkeypatch.setattr(group_norm_cpu, "available", lambda: compiles)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)

    return is_one


@pytest.mark.parametrize(
    ("unit", "compiles", "gpu", "device", "expected"),
    [
        ("AMX", True, False, "auto", ("bfloat16", True)),
        ("AVX512-BF16", True, False, "cpu", ("bfloat16", True)),
        ("AMX", False, False, "cpu", ("bfloat16", False)),
        (None, True, False, "auto", ("float32", False)),
        (None, False, True, "auto", ("bfloat16", True)),
        (None, False, True, "cpu", ("float32", False)),
        (None, False, False, "cuda", ("bfloat16", True)),
    ],
)
def test_auto_is_what_is_fastest_here_and_is_stored_as_such(
    unit: str | None,
    compiles: bool,
    gpu: bool,
    device: str,
    expected: tuple[str, bool],
    machine: Any,
    small_recipe: dict[str, Any],
) -> None:
    machine(unit, compiles=compiles, gpu=gpu)
    resolved = recipe.resolve(small_recipe | AUTO | {"cluster": {"device": device}})
    assert (resolved.precision, resolved.channels_last) == expected
    machine("AMX" if unit is None else None)  # another machine reads what was stored
    assert recipe.parse_resolved(to_tree(resolved)) == resolved


def test_what_a_recipe_says_itself_stays(machine: Any, small_recipe: dict[str, Any]) -> None:
    machine("AMX")
    half = recipe.complete(small_recipe | {"precision": "bfloat16"})
    assert (half.precision, half.channels_last) == ("bfloat16", False)
    for named, kept in (("float32", False), ("float16", False), ("bfloat16", True)):
        made = recipe.complete(small_recipe | {"precision": named, "channels_last": "auto"})
        assert (made.precision, made.channels_last) == (named, kept)


def test_the_choice_is_said_with_its_reason(machine: Any) -> None:
    machine("AMX")
    assert recipe.left_to_machine("demo") == (
        "auto: precision=bfloat16 channels_last=true: this processor multiplies it (AMX)"
    )
    assert recipe.left_to_machine("demo", ["precision=float32"]) == "auto: channels_last=false"
    assert recipe.left_to_machine("demo", ["precision=float32", "channels_last=false"]) is None
    machine(None)
    assert recipe.left_to_machine("demo", ["channels_last=true"]) == (
        "auto: precision=float32: this processor multiplies no bfloat16, it has neither AMX nor AVX512-BF16"
    )


def test_all_trials_of_a_sweep_have_what_its_driver_chose(machine: Any) -> None:
    machine("AMX")
    sweep = replace(
        from_dimensions("demo", ["task.losses.entropy.weight=0.01,0.02"]), overrides=WITHOUT_TEACHER
    )
    begun, first = sweep.pinned(lambda name: name)
    machine(None)  # a trial's machine
    trial = begun.recipe_of({"task.losses.entropy.weight": 0.02})
    assert (first.precision, first.channels_last) == ("bfloat16", True)
    assert (trial.precision, trial.channels_last) == ("bfloat16", True)
    assert begun.pinned(lambda name: name)[0].overrides == begun.overrides, "a resume adds nothing"


def test_a_processor_is_known_by_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "flags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\n": "AMX",
        "flags\t\t: fpu avx2 avx512_bf16\n": "AVX512-BF16",
        "flags\t\t: fpu avx2 avx512f\n": None,
        "": None,
    }
    monkeypatch.setattr(precision.platform, "machine", lambda: "x86_64")
    for text, unit in texts.items():
        monkeypatch.setattr(Path, "read_text", lambda self, text=text: text)
        assert precision.bfloat16_unit.__wrapped__() == unit
    monkeypatch.setattr(precision.platform, "machine", lambda: "arm64")
    assert precision.bfloat16_unit.__wrapped__() is None
