"""A process that makes a stage-1 step for every line it reads, and prints its seconds: `cpu_step` takes several in turn.

    python -P step_process.py PRESET BATCH KEEP PRECISION LAYOUT

Its imports are those of a checkout on PYTHONPATH, of this version or of one before; -P, for the `platform.py` of this folder
is not the standard library's.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import torch

import mergevq
from mergevq.training.tokenizer import build_training
from mergevq_platform import optim

BEGUN = 10**6  # a step at which the adversarial terms have begun


def main() -> None:
    """Print {"peak": bytes so far, "loss": the tokenizer's} when ready and {"seconds", "peak", "loss"} for each line of standard input."""
    preset, batch, keep, precision, layout = sys.argv[1:]
    torch.manual_seed(0)
    optim.prefer_speed(torch.device("cpu"))
    tokenizer = mergevq.create(preset)
    size = tokenizer.config.image_size
    training = build_training({"alignment": {"kind": "none"}, "perceptual": {"kind": "none"}}, tokenizer)
    images = {name: torch.rand(int(batch), 3, size, size) * 2 - 1 for name in ("image", "student")}
    if layout == "channels_last":
        training = training.to(memory_format=torch.channels_last)
        images = {name: x.contiguous(memory_format=torch.channels_last) for name, x in images.items()}
    images["label"] = torch.arange(int(batch))
    optimizers = {name: _optimizer(phase) for name, phase in training.phases.items()}

    def step() -> float:
        carry: dict[str, Any] = {}
        loss = 0.0
        for name, phase in training.phases.items():
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                output = phase(images, carry, keep=int(keep), step=BEGUN)
            output.total.backward()
            carry = output.carry
            loss = loss or float(output.total.detach())
            optimizers[name].step()
            optimizers[name].zero_grad(set_to_none=True)
        return loss

    _say(loss=step())
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step()
        _say(seconds=time.perf_counter() - began, loss=loss)


def _optimizer(phase: torch.nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in phase.parameters() if p.requires_grad]
    settings: dict[str, Any] = {"lr": 1e-4, "betas": (0.5, 0.9)}
    try:
        from mergevq_platform.adamw import FusedAdamW
    except ImportError:  # a version of before
        return torch.optim.AdamW(parameters, fused=True, **settings)
    return FusedAdamW(parameters, **settings)


def _say(**values: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(values | {"peak": peak}), flush=True)


if __name__ == "__main__":
    main()
