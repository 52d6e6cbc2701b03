"""What decides the last bits of a number: the processor, and the libraries that compute on it."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

import threadpoolctl
import torch

LIBRARIES = ("torch", "numpy", "scipy", "pillow", "scikit-learn", "optuna", "pyarrow")
SWITCHES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")


def processor() -> str:
    """Name, family, model and stepping of the processor, with a hash of its flags where the system tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    first = text.split("\n\n")[0]
    facts = dict(line.split(":", 1) for line in first.splitlines() if ":" in line)
    told = {key.strip(): value.strip() for key, value in facts.items()}
    flags = " ".join(sorted(told.get("flags", told.get("Features", "")).split()))
    names = [told[key] for key in ("model name", "cpu family", "model", "stepping") if key in told]
    return " ".join([platform.machine(), *names, hashlib.sha256(flags.encode()).hexdigest()[:12]])


def fingerprint() -> dict[str, str]:
    """Two recordings with the same fingerprint must agree bit for bit."""
    found = {
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "system": platform.system(),
    }
    found |= {name: version(name) for name in LIBRARIES}
    return found | {name: os.environ[name] for name in SWITCHES if name in os.environ}


def one_thread() -> None:
    """Sums in one order: PyTorch, BLAS and OpenMP with one thread each."""
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)
