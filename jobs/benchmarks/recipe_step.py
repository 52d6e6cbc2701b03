"""The training step that a published recipe really takes, see `whole_step`: its speed, work and memory, and where its time goes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.timing import device, in_fresh_process, interleaved, machine_rates, synchronise
from benchmarks.whole_step import BATCH, RECIPE, WholeStep, recipe_of
from mergevq.image_size import height_width

LOADED_STEPS = 40


def recipe_step() -> Iterator[str]:
    """Images/s, peak memory, counted work and share of the device's own matrix rate of a recipe's whole step on a GPU; on
    a CPU only that it runs, with a tokenizer of 16 px."""
    yield from _steps("eager")


def recipe_step_compiled() -> Iterator[str]:
    """The same with the transformer blocks compiled, whose first step takes minutes."""
    yield from _steps("compiled")


def _steps(way: str) -> Iterator[str]:
    gpu = torch.cuda.is_available()
    what = f"{RECIPE} with LPIPS-VGG16 and DINOv2-B" if gpu else "its parts around a tokenizer of 16 px"
    rate, copied = in_fresh_process(machine_rates)
    yield f"this device: {rate / 1e12:.1f} TFLOP/s in bfloat16 matrix products, {copied / 1e9:.0f} GB/s copied"
    batch = BATCH if gpu else 2
    seconds, peak, first, flops = in_fresh_process(_timed_recipe_step, way, gpu)
    yield (
        f"recipe step, {what}, bfloat16, batch {batch}, {way}: {batch / seconds:.1f} images/s, {peak / 1e9:.1f} GB at the peak, "
        f"{flops / batch / 1e9:.0f} GFLOP an image, {flops / seconds / 1e12:.1f} TFLOP/s, {flops / seconds / rate:.1%} of the "
        f"device's own matrix rate; first step {first:.0f} s"
    )


def recipe_profile() -> list[str]:
    """The time of that step by kind of kernel."""
    return in_fresh_process(_profiled, torch.cuda.is_available())


def recipe_loaded() -> Iterator[str]:
    """The same step inside the training loop, fed from Parquet by loader processes."""
    gpu = torch.cuda.is_available()
    for workers in (0, 8) if gpu else (0,):
        rate, waiting = in_fresh_process(_loaded, gpu, workers)
        yield f"training loop with {workers} loader processes: {rate:.1f} images/s, {waiting:.0%} of the time waiting for data"


def _timed_recipe_step(way: str, gpu: bool) -> tuple[float, int, float, int]:
    """(seconds, bytes at the peak, seconds of the first steps, counted FLOPs of the eager step) of a step."""
    step = WholeStep(gpu)
    flops = step.count_flops()
    if way == "compiled":
        step.compile()
    synchronise()
    began = time.perf_counter()
    step()
    step()
    synchronise()
    first = time.perf_counter() - began
    seconds = interleaved({"step": step}, rounds=15 if gpu else 3)["step"]
    return seconds, torch.cuda.max_memory_allocated() if gpu else 0, first, flops


def _profiled(gpu: bool) -> list[str]:
    step = WholeStep(gpu)
    step()
    return profile_lines(lambda: step(launched=True), 24)


def profile_lines(step: Callable[[], None], shown: int) -> list[str]:
    """How long kernels (on a CPU: operators) fill of how long a step, and the `shown` that take longest."""
    from torch.profiler import ProfilerActivity, profile

    gpu = torch.cuda.is_available()
    step_seconds = interleaved({"step": step}, rounds=3)["step"]
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        step()
        synchronise()
    events = [
        event
        for event in profiler.key_averages()
        if not gpu or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    times = {
        event.key: event.self_device_time_total if gpu else event.self_cpu_time_total for event in events
    }
    total = sum(times.values())
    # Where kernels fill less than the step, the device waits for them to be launched.
    head = (
        f"profile of a recipe step: {sum(event.count for event in events):,} {'kernels' if gpu else 'operators'}, "
        f"{total / 1e3:.0f} ms in all, in a step of {step_seconds * 1e3:.0f} ms:"
    )
    longest = sorted(times, key=lambda name: -times[name])[:shown]
    return [head] + [
        f"  {times[name] / max(total, 1e-9):6.1%} {times[name] / 1e3:8.2f} ms  {_short(name)}"
        for name in longest
    ]


def _short(kernel: str) -> str:
    for noise in (
        "void ",
        "at::native::",
        "(anonymous namespace)::",
        "gpu_kernel_impl_nocast<",
        "gpu_kernel_impl<",
    ):
        kernel = kernel.replace(noise, "")
    return kernel[:130]


def _loaded(gpu: bool, workers: int) -> tuple[float, float]:
    """(images per second, share of the time waiting for data) of the loop's last steps."""
    from mergevq_platform import loop
    from mergevq_platform.data import write_shapes
    from mergevq_platform.distributed import local

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        batch, steps = (BATCH, LOADED_STEPS) if gpu else (2, 8)
        recipe = recipe_of(
            folder,
            gpu,
            *(f"steps={steps}", "epochs=null", f"log_every={steps // 2}", "checkpoint_every=100000"),
            *(f"global_batch={batch}", f"micro_batch={batch}", "compile=false", "cluster.device=auto"),
            f"data.loader_workers={workers}",
        )
        size = max(height_width(recipe.data.views.image_size))
        write_shapes(folder / "data", images=128, val_images=16, size=size, seed=0)
        host = local.LocalHost(folder / "run")
        host.directory.mkdir()
        loop.train(recipe, loop.Worker(device=device()), host)
        last = host.system[-1][1]
        return last["system/images_per_second"], last["system/waiting_share"]


MEASUREMENTS = {f.__name__: f for f in (recipe_step, recipe_step_compiled, recipe_profile, recipe_loaded)}
