"""One sitting at a GPU: the recipe's step as it was before kernels and graphs, and as it is; then decoding.

Two processes hold the two ways and step in turn, so that the ratio is of one device at one time and neither finds the other's
choice of convolutions. What matters most comes first, and every line is printed as soon as it is known.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.recipe_step import profile_lines
from benchmarks.timing import device, interleaved, machine_rates, synchronise
from benchmarks.whole_step import WholeStep, without_kernels
from mergevq_platform.flops import stated_peak

ROUNDS, STEPS = 6, 4  # turns of each way, steps of a turn


class Clock:
    """The time that a sitting has left."""

    def __init__(self, limit_seconds: float) -> None:
        self.ends = time.monotonic() + limit_seconds
        self.began = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.ends - time.monotonic()

    def stamp(self, text: str) -> str:
        """The line with the seconds since the beginning before it."""
        return f"[{time.monotonic() - self.began:5.1f} s] {text}"


class Way:
    """A process that holds the step of one way and does what it is told."""

    def __init__(self, name: str, full: bool) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, name, full), daemon=True)
        self.process.start()
        other.close()

    def ask(self, command: str, *arguments: Any) -> None:
        """Begin a command."""
        self.connection.send((command, *arguments))

    def answer(self, seconds: float) -> Any:
        """The answer to the oldest command. Raises TimeoutError after `seconds`, RuntimeError for what failed there."""
        if not self.connection.poll(max(0.0, seconds)):
            raise TimeoutError(f"{self.name} did not answer in time")
        try:
            kind, value = self.connection.recv()
        except EOFError:
            raise RuntimeError(f"{self.name}'s process ended") from None
        if kind == "failed":
            raise RuntimeError(f"{self.name}: {value}")
        return value

    def end(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, name: str, full: bool) -> None:
    with without_kernels() if name == "before" else nullcontext():
        commands = _Commands(name, full)
        while True:
            command, *arguments = connection.recv()
            try:
                connection.send(("done", getattr(commands, command)(*arguments)))
            except Exception as error:  # whatever it is, the other process goes on
                connection.send(("failed", f"{type(error).__name__}: {str(error).splitlines()[0]}"))


class _Commands:
    """What a way's process can be told."""

    def __init__(self, name: str, full: bool) -> None:
        self.name, self.full = name, full
        self.step: WholeStep

    def build(self) -> float:
        began = time.monotonic()
        self.step = WholeStep(self.full, f"cuda_graphs={str(self.name == 'now').lower()}")
        synchronise()
        return time.monotonic() - began

    def count(self) -> int:
        """The FLOPs of a step, which is taken for it."""
        flops = self.step.count_flops()
        synchronise()
        return flops

    def warm(self) -> tuple[list[float], list[str]]:
        """Seconds of the first steps, which compile kernels and record, and warnings."""
        seconds = [self.turn(1, False)[0] for _ in range(4)]
        return seconds, self.step.warnings

    def turn(self, steps: int, launched: bool) -> tuple[float, float]:
        """Seconds of a step, of `steps` in a row, on the device; and until the host had launched them."""
        synchronise()
        began = time.perf_counter()
        for _ in range(steps):
            self.step(launched=launched)
        launching = time.perf_counter() - began
        synchronise()
        return (time.perf_counter() - began) / steps, launching / steps

    def memory(self) -> tuple[float, float]:
        """GB at the peak of what was allocated since the last call, and what the process holds now."""
        if not torch.cuda.is_available():
            return 0.0, 0.0
        found = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.memory_reserved() / 1e9
        torch.cuda.reset_peak_memory_stats()
        return found

    def profile(self, launched: bool, shown: int) -> list[str]:
        """The time of a step by kernel."""
        return profile_lines(lambda: self.step(launched=launched), shown)

    def recompute(self) -> None:
        """From now on convolution stages recompute norms in the backward pass."""
        from mergevq.layers import set_recompute

        set_recompute(self.step.training)
        self.step.recorded.graphs.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def release(self) -> None:
        """Drop everything on the device."""
        del self.step
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def gpu(limit_seconds: float = 600.0, tiny: bool = False) -> Iterator[str]:
    """The recipe's step before and now, its profile and memory, then decoding, within `limit_seconds`; `tiny`: on a CPU, to try it."""
    if not torch.cuda.is_available() and not tiny:
        yield "gpu: needs a GPU, or --tiny"
        return
    clock, full = Clock(limit_seconds), torch.cuda.is_available() and not tiny
    ways = {name: Way(name, full) for name in ("now", "before")}
    try:
        yield from _steps(ways, clock)
    except (TimeoutError, RuntimeError) as error:
        yield clock.stamp(f"the step was cut short: {error}")
    finally:
        for way in ways.values():
            way.end()
    for line in (_raster, _random_order):
        if clock.left < 20 and full:
            yield clock.stamp(f"no time is left for {line.__name__.strip('_')}")
            continue
        yield clock.stamp(line(full))


def _steps(ways: dict[str, Way], clock: Clock) -> Iterator[str]:
    now, before = ways["now"], ways["before"]
    for way in ways.values():
        way.ask("build")
        way.ask("count") if way is before else None
        way.ask("warm")
    yield clock.stamp(f"before: built in {before.answer(clock.left):.0f} s")
    flops = before.answer(clock.left)
    yield clock.stamp(
        f"before: {flops / 1e12:.2f} TFLOP a step; first steps {_seconds(before.answer(clock.left)[0])}"
    )
    yield clock.stamp(f"now: built in {now.answer(clock.left):.0f} s")
    first, warnings = now.answer(clock.left)
    yield clock.stamp(f"now: first steps, compiling and recording: {_seconds(first)}")
    yield from (clock.stamp(f"now: {warning}") for warning in warnings)
    for name, way in ways.items():
        way.ask("memory")
        peak, held = way.answer(clock.left)
        yield clock.stamp(
            f"{name}: {peak:.1f} GB at the peak of the first steps, {held:.1f} GB held by the process"
        )

    batch = 16 if torch.cuda.is_available() else 2
    times: dict[str, list[tuple[float, float]]] = {"now": [], "before": [], "launched": []}
    asked: dict[str, tuple[Way, bool]] = {
        "before": (before, True),
        "now": (now, False),
        "launched": (now, True),
    }
    for turn in range(ROUNDS):
        for name, (way, launched) in asked.items():
            way.ask("turn", STEPS, launched)
            times[name].append(way.answer(clock.left))
        if turn in (0, ROUNDS - 1):
            for name, found in times.items():
                yield clock.stamp(_speed(name, found, batch, flops))
    ratio = _median(times["before"]) / _median(times["now"])
    yield clock.stamp(f"now is {ratio:.2f} times as fast as before, in {ROUNDS} turns of {STEPS} steps each")
    for name, way in ways.items():
        way.ask("memory")
        peak, _ = way.answer(clock.left)
        yield clock.stamp(f"{name}: {peak:.1f} GB at the peak of a launched step, when cuDNN has tried all")
    yield from _details(now, before, clock, flops, batch)


def _details(now: Way, before: Way, clock: Clock, flops: int, batch: int) -> Iterator[str]:
    for way, launched, shown in ((now, True, 40), (now, False, 6), (before, True, 6)):
        way.ask("profile", launched, shown)
        for line in way.answer(clock.left):
            yield clock.stamp(f"{way.name}{', launched' * launched}: {line}")
    before.ask("release")
    before.answer(clock.left)
    now.ask("recompute")
    now.ask("warm")
    now.ask("memory")
    for _ in range(3):
        now.ask("turn", STEPS, False)
    now.answer(clock.left)
    now.answer(clock.left)
    peak, held = now.answer(clock.left)
    times = [now.answer(clock.left) for _ in range(3)]
    yield clock.stamp(
        f"{_speed('now, recompute=true', times, batch, flops)}; {peak:.1f} GB at the peak, {held:.1f} GB held"
    )
    rate, copied = machine_rates()
    yield clock.stamp(
        f"this device alone: {rate / 1e12:.0f} TFLOP/s in bfloat16 products, {copied / 1e9:.0f} GB/s copied"
    )


def _median(times: list[tuple[float, float]]) -> float:
    return statistics.median(seconds for seconds, _ in times)


def _speed(name: str, times: list[tuple[float, float]], batch: int, flops: int) -> str:
    seconds, launching = _median(times), statistics.median(launching for _, launching in times)
    peak = stated_peak(torch.cuda.get_device_name(), "bfloat16") if torch.cuda.is_available() else None
    share = f", {flops / seconds / peak:.1%} of the stated peak of {peak / 1e12:.0f}" if peak else ""
    return (
        f"{name}: {batch / seconds:.1f} images/s, {seconds * 1e3:.1f} ms a step ({launching * 1e3:.1f} ms to launch it), "
        f"{flops / seconds / 1e12:.1f} TFLOP/s{share}"
    )


def _seconds(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values) + " s"


def _raster(full: bool) -> str:
    return _decoded("raster_l" if full else "tiny_raster", 64 if full else 2, {}, {})


def _random_order(full: bool) -> str:
    keep, steps = (144, 64) if full else (16, 8)
    name = "random_order_l" if full else "tiny_random_order"
    return _decoded(name, 64 if full else 2, {"keeps": [keep]}, {"keep": keep, "steps": steps})


def _decoded(name: str, batch: int, changes: dict[str, Any], options: dict[str, Any]) -> str:
    from benchmarks.generation import _generator, _sample
    from mergevq.generation import GuidanceConfig

    generator = _generator(name, **changes).bfloat16()
    work: Callable[[], Any] = _sample(generator, batch, guidance=GuidanceConfig(scale=2.0), **options)
    began = time.perf_counter()
    made = work()
    synchronise()
    first = time.perf_counter() - began
    seconds = interleaved({"work": work}, rounds=3)["work"]
    weights = sum(p.numel() for p in generator.parameters()) / 1e6
    return (
        f"{name} ({weights:.0f}M), bfloat16 weights, batch {batch}, guidance 2, {made.steps} steps, tokens only: "
        f"{batch / seconds:.1f} images/s, {seconds / made.steps * 1e3:.2f} ms a step, {made.cache_bytes / 1e9:.2f} GB of cache; "
        f"the first {first:.1f} s on {device()}"
    )


MEASUREMENTS = {"gpu": gpu}
