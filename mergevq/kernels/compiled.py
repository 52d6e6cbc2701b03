"""C++ sources of this package as shared libraries, compiled for this processor at their first use and kept for the next."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import torch

DTYPES = (torch.float32, torch.bfloat16)  # of elements; their positions are their numbers in C++
COMPILERS = ("c++", "g++", "clang++")
# No fast-math: NaN must stay NaN, and a sum keep its order.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
    "-fopenmp",
)
FLAGS_OF = {"x86_64": ("-mprefer-vector-width=512",)}  # of machines


@cache
def compiler() -> str | None:
    """The C++ compiler on the path, or None."""
    return next((path for name in COMPILERS if (path := shutil.which(name))), None)


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The library of the source `name`.cpp beside this file; None, and a warning once, where it cannot be compiled.

    Compiled in two seconds; kept under PyTorch's cache directory (`TORCH_HOME`, by default ~/.cache/torch), by source,
    compiler and processor, or, where that cannot be written, for this process alone.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    program = compiler()
    if program is None:
        _say_without(name, f"none of {', '.join(COMPILERS)} is on the path")
        return None
    command = [program, *FLAGS, *FLAGS_OF.get(platform.machine(), ())]
    try:
        return _loaded(source, command)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line.lower()]
        _say_without(name, f"{program} failed: {(lines or ['no reason given'])[0].strip()}")
    except OSError as error:
        _say_without(name, str(error))
    return None


def _loaded(source: Path, command: list[str]) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="mergevq_") as scratch:
        try:
            kept = Path(torch.hub.get_dir()).parent / "mergevq"
            kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(kept, os.W_OK):
                raise PermissionError(kept)
        except OSError:
            kept = Path(scratch)
        name = f"{source.stem}-{_identity(source, command)}"
        for known in kept.glob(f"{name}-*.so"):
            if known.stem == f"{name}-{_digest(known)}":
                return ctypes.CDLL(str(known))
            known.unlink(missing_ok=True)  # damaged: loaded, it could end the process
        # Beside its place and then renamed: another process sees all of it or nothing.
        with tempfile.TemporaryDirectory(dir=kept) as beside:
            built = Path(beside) / "built.so"
            run = [*command, "-o", str(built), str(source)]
            subprocess.run(run, check=True, capture_output=True, text=True, errors="replace")
            target = built.replace(kept / f"{name}-{_digest(built)}.so")
        return ctypes.CDLL(str(target))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _identity(source: Path, command: list[str]) -> str:
    # A home directory may be shared by machines whose processors differ.
    asked = [command[0], "--version"]
    version = subprocess.run(asked, check=True, capture_output=True, text=True, errors="replace").stdout
    texts = [file.read_text() for file in (source, *sorted(source.parent.glob("*.h")))]
    facts = [*texts, *command, version, platform.machine(), _processor()]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    kinds = ("model name", "flags", "CPU part", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))


def _say_without(name: str, reason: str) -> None:
    warnings.warn(
        f"the compiled {name.replace('_', ' ')} is not used, PyTorch's slower one is: {reason}; install a C++ compiler such as g++",
        stacklevel=3,
    )
