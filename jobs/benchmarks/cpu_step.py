"""The stage-1 step on a CPU in both precisions, beside that of another checkout: processes that step in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from benchmarks.timing import interleaved, machine_rates

PRESET, BATCH, KEEP = "gr_128_d32", 4, 36
ROUNDS = 9
HERE = Path(__file__).parents[2]
K = TypeVar("K", bound=Hashable)


class StepProcess:
    """One checkout's step in a process of its own."""

    def __init__(self, checkout: Path, precision: str, layout: str) -> None:
        script = Path(__file__).with_name("step_process.py")
        command = [sys.executable, "-P", str(script), PRESET, str(BATCH), str(KEEP), precision, layout]
        paths = os.pathsep.join(str(checkout / folder) for folder in ("platform", "."))
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answers: list[dict[str, float]] = [self._answer()]

    def step(self) -> float:
        """The seconds of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.answers.append(self._answer())
        return self.answers[-1]["seconds"]

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the step of {' '.join(map(str, self.process.args))} ended early")  # type: ignore[arg-type]
        answer: dict[str, float] = json.loads(line)
        return answer


def cpu_step(against: Path | None = None) -> list[str]:
    """Seconds and peak memory of the step in float32 and bfloat16, and of `against`, a checkout of before, in the same turns."""
    ways = {
        "float32": (HERE, "float32", "contiguous"),
        "bfloat16": (HERE, "bfloat16", "contiguous"),
        "bfloat16, channels-last": (HERE, "bfloat16", "channels_last"),
    }
    if against is not None:
        if not (against / "mergevq" / "tokenizer.py").is_file():
            raise SystemExit(f"--against {against}: no checkout of mergevq is there")
        ways |= {
            "the other checkout, float32": (against.resolve(), "float32", "contiguous"),
            "the other checkout, bfloat16": (against.resolve(), "bfloat16", "contiguous"),
        }
    times, peaks = stepped_in_turn(
        {name: partial(StepProcess, *way) for name, way in ways.items()}, warm_up=2
    )
    product, copy = machine_rates()
    return [
        f"stage-1 step {PRESET}, batch {BATCH}, keep {KEEP}, tokenizer and discriminator, both updates; "
        f"{ROUNDS} steps of each in turn",
        *(_line(name, times, peaks) for name in times),
        f"this machine's own rates: {product / 1e9:,.0f} GFLOP/s in a bfloat16 product, {copy / 1e9:.1f} GB/s copied; "
        + _convolution_rates(),
    ]


def stepped_in_turn(
    begin: dict[K, Callable[[], StepProcess]], *, warm_up: int
) -> tuple[dict[K, list[float]], dict[K, float]]:
    """(seconds of `ROUNDS` steps of each process, taken in turn; the peak of its memory in bytes).

    The first steps, `warm_up` after the one that a process makes by itself, compile, pack and make the optimizers' state.
    """
    with ExitStack() as stack:
        running = {}
        for name, start in begin.items():
            running[name] = start()
            stack.callback(running[name].close)
        for process in running.values():
            for _ in range(warm_up):
                process.step()
        times: dict[K, list[float]] = {name: [] for name in running}
        for _ in range(ROUNDS):
            for name, process in running.items():
                times[name].append(process.step())
        return times, {name: max(answer["peak"] for answer in p.answers) for name, p in running.items()}


def _line(name: str, times: dict[str, list[float]], peaks: dict[str, float]) -> str:
    best, middle = min(times[name]), statistics.median(times[name])
    ratios = [
        f"{statistics.median(times[other]) / middle:.2f} x the speed of {other} ({min(times[other]) / best:.2f} x by minima), "
        f"{peaks[name] / peaks[other]:.2f} x its memory"
        for other in times
        if other.startswith("the other") and not name.startswith("the other")
    ]
    ratio = f"; {'; '.join(ratios)}" if ratios else ""
    return f"{name}: median {middle:.2f} s, least {best:.2f} s, {peaks[name] / 1e9:.2f} GB at the peak{ratio}"


def _convolution_rates() -> str:
    """GFLOP/s of one 3 x 3 convolution of 64 channels at 128 pixels, by precision and layout."""
    work = {}
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(BATCH, 64, 128, 128).to(dtype, memory_format=layout)
            weight = torch.randn(64, 64, 3, 3).to(dtype, memory_format=layout)
            name = f"{str(dtype).removeprefix('torch.')} {'channels-last' if layout == torch.channels_last else 'contiguous'}"
            work[name] = _convolution(x, weight)
    flops = 2 * BATCH * 64 * 64 * 9 * 128 * 128
    with torch.inference_mode():
        times = interleaved(work, rounds=9)
    rates = ", ".join(f"{flops / seconds / 1e9:,.0f} {name}" for name, seconds in times.items())
    return f"one convolution, GFLOP/s: {rates}"


def _convolution(x: torch.Tensor, weight: torch.Tensor) -> Any:
    return lambda: F.conv2d(x, weight, padding=1)


MEASUREMENTS = {"cpu_step": cpu_step}
