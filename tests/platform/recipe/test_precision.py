"""`auto`: precision and memory layout of the machine at hand, written out once, before anything is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mergevq.config import to_tree
from mergevq.kernels import compiled
from mergevq_platform import recipe
from mergevq_platform.recipe import precision

AUTO = {"precision": "auto", "channels_last": "auto"}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what the processor multiplies bfloat16 with, and whether there is a compiler."""

    def is_one(unit: str | None, compiler: str | None = "/usr/bin/c++") -> None:
        monkeypatch.setattr(precision, "bfloat16_unit", lambda: unit)
        monkeypatch.setattr(compiled, "compiler", lambda: compiler)

    return is_one


@pytest.mark.parametrize(
    ("unit", "compiler", "device", "expected"),
    [
        ("AMX", "/usr/bin/c++", "auto", ("bfloat16", True)),
        ("AVX512-BF16", "/usr/bin/c++", "cpu", ("bfloat16", True)),
        ("AMX", None, "cpu", ("bfloat16", False)),
        (None, "/usr/bin/c++", "auto", ("float32", False)),
        (None, None, "cuda", ("bfloat16", True)),
    ],
)
def test_auto_is_what_is_fastest_here_and_is_stored_as_such(
    unit: str | None,
    compiler: str | None,
    device: str,
    expected: tuple[str, bool],
    processor: Any,
    small_recipe: dict[str, Any],
) -> None:
    processor(unit, compiler)
    resolved = recipe.resolve(small_recipe | AUTO | {"cluster": {"device": device}})
    assert (resolved.precision, resolved.channels_last) == expected
    processor("AMX" if unit is None else None)  # another machine reads what was stored
    again = recipe.parse_resolved(to_tree(resolved))
    assert again == resolved


def test_what_a_recipe_says_itself_stays(processor: Any, small_recipe: dict[str, Any]) -> None:
    processor("AMX")
    half = recipe.complete(small_recipe | {"precision": "bfloat16"})
    assert (half.precision, half.channels_last) == ("bfloat16", False)
    single = recipe.complete(small_recipe | {"precision": "float32", "channels_last": "auto"})
    assert (single.precision, single.channels_last) == ("float32", False)


def test_the_choice_is_said_with_its_reason_and_its_other(processor: Any, tmp_path: Path) -> None:
    processor("AMX")
    assert recipe.left_to_machine("demo", ["precision=auto", "channels_last=auto"]) == (
        "precision: bfloat16, maps in channels-last memory: this processor multiplies it (AMX); precision=float32 sets the other"
    )
    processor(None)
    said = recipe.left_to_machine("demo", ["precision=auto"])
    assert said is not None
    assert said.startswith("precision: float32: this processor multiplies no bfloat16")
    assert said.endswith("; precision=bfloat16 sets the other")
    assert recipe.left_to_machine("demo", ["precision=float32", "channels_last=false"]) is None


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
