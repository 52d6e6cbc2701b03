"""C++ sources compiled at their first use: kept for the next process, done without where they cannot be."""

from __future__ import annotations

import subprocess
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mergevq.fused import has_norm_kernel, norm_silu
from mergevq.kernels import compiled
from mergevq.layers import GroupNorm


@pytest.fixture(autouse=True)
def asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and nothing remembered of earlier calls; returns the folder of PyTorch's cache."""
    for known in (compiled.library, compiled.compiler):
        monkeypatch.setattr(compiled, known.__name__, compiled.cache(known.__wrapped__))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


needs_compiler = pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler is here")


@needs_compiler
def test_a_source_is_compiled_once_and_kept_for_its_owner_alone(
    asked_anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiled.library("group_norm") is not None
    kept = list((asked_anew / "mergevq").iterdir())
    assert [path.suffix for path in kept] == [".so"], "nothing else is left behind"
    assert (asked_anew / "mergevq").stat().st_mode & 0o777 == 0o700
    compiled.library.cache_clear()
    run, commands = subprocess.run, []

    def counted(command: list[str], **options: object) -> object:
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(compiled.subprocess, "run", counted)
    assert compiled.library("group_norm") is not None
    assert [command[1:] for command in commands] == [["--version"]], "no second compilation"


@needs_compiler
@pytest.mark.parametrize("left", [0, 5000])
def test_a_damaged_library_is_made_again(asked_anew: Path, left: int) -> None:
    assert compiled.library("group_norm") is not None
    (kept,) = (asked_anew / "mergevq").iterdir()
    damaged = kept.read_bytes()[:left]
    kept.unlink()  # not written over: it is mapped
    kept.write_bytes(damaged)
    compiled.library.cache_clear()
    assert compiled.library("group_norm") is not None
    (again,) = (asked_anew / "mergevq").iterdir()
    assert again.stat().st_size > 5000


@needs_compiler
def test_where_nothing_can_be_kept_it_is_compiled_for_the_process(
    asked_anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_anew.write_text("a file where the folder would be")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled.library("group_norm") is not None


def test_without_a_compiler_pytorchs_norm_is_taken_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    x = torch.randn(2, 8, 3, 5).bfloat16().contiguous(memory_format=torch.channels_last)
    norm = GroupNorm(2, 8)
    with pytest.warns(UserWarning, match=r"none of c\+\+, g\+\+, clang\+\+ is on the path; install"):
        assert torch.equal(norm_silu(norm, x), F.silu(norm(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not has_norm_kernel(x)


def test_a_compiler_that_fails_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bin" / "c++"
    broken.parent.mkdir()
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'group_norm.cpp: fatal error: no cmath' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:/bin:/usr/bin")
    with pytest.warns(UserWarning, match=r"c\+\+ failed: group_norm.cpp: fatal error: no cmath; install"):
        assert compiled.library("group_norm") is None
