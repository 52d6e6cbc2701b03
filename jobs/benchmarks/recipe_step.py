"""The training step that a published recipe really takes: LPIPS, teacher, all views, both updates, moving average.

The frozen networks have random weights of the right shapes: what they compute means nothing, what it costs is the same.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import device, in_fresh_process, interleaved, synchronise
from mergevq.image_size import height_width

RECIPE, BATCH, KEEP = "gr_256_d64", 16, 144
SMALL = (
    "task.preset=test_gr",
    "task.model.head.out=64",
    "task.keep={kind: list, counts: [9]}",
    "data.views.image_size=16",
    "evaluation.keeps=[9]",
    "evaluation.every=null",
    "task.losses.adversarial.discriminator.num_layers=1",
)
LOADED_STEPS = 40
MATRIX_SIDE, COPY_BYTES = 8192, 1 << 30


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
    rate, copied = in_fresh_process(_machine_rates)
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


def _recipe(folder: Path, gpu: bool, *overrides: str) -> Any:
    from mergevq_platform import recipe

    backbone, heads, teacher = _frozen_weights(folder)
    name = "vit_base_patch14_dinov2" if gpu else "test_vit"
    losses = [
        f"task.losses.perceptual.backbone={backbone}",
        f"task.losses.perceptual.heads={heads}",
        f"task.losses.alignment.model={name}",
        f"task.losses.alignment.weights={teacher[name]}",
    ]
    small = (
        ()
        if gpu
        else (*SMALL, "task.losses.alignment.teacher_size=160", "task.losses.alignment.student_size=16")
    )
    overrides = (*losses, *small, f"data.path={folder / 'data'}", "cluster.workers=1", *overrides)
    return recipe.resolve(recipe.load(RECIPE, overrides))


def _frozen_weights(folder: Path) -> tuple[Path, Path, dict[str, Path]]:
    """Files of VGG16, LPIPS's heads and the teachers, random, in their releases' layouts."""
    import safetensors.torch
    import timm

    from mergevq.losses.perceptual import _VGG16_WIDTHS, _vgg16_features

    torch.manual_seed(0)
    backbone, heads = folder / "vgg16.safetensors", folder / "heads.safetensors"
    features = {f"features.{name}": value for name, value in _vgg16_features().state_dict().items()}
    safetensors.torch.save_file(features, backbone)
    weights = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(_VGG16_WIDTHS)}
    safetensors.torch.save_file(weights, heads)
    teachers = {}
    for name in ("vit_base_patch14_dinov2",) if torch.cuda.is_available() else ("test_vit",):
        teachers[name] = folder / f"{name}.safetensors"
        safetensors.torch.save_file(timm.create_model(name, num_classes=0).state_dict(), teachers[name])
    return backbone, heads, teachers


def _whole_step(gpu: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """One optimizer step exactly as the training loop takes it, on images that lie on the device; and what compiles it."""
    from mergevq.ema import Ema
    from mergevq_platform import loop, optim
    from mergevq_platform.data import open_dataset, write_shapes
    from mergevq_platform.storage import checkpoints
    from mergevq_platform.tasks.task import task_of

    torch.set_float32_matmul_precision("high")
    batch_size = BATCH if gpu else 2
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        recipe = replace(_recipe(folder, gpu), global_batch=batch_size, micro_batch=batch_size)
        write_shapes(
            folder / "data",
            images=64,
            val_images=16,
            size=max(height_width(recipe.data.views.image_size)),
            seed=0,
        )
        samples = open_dataset(recipe.data.path, recipe.data.train_split)
        training = loop.build(recipe, samples).to(device()).to(memory_format=torch.channels_last)
    state = checkpoints.TrainingState(
        training, Ema(training.model(), recipe.ema_decay), optim.make_optimizers(recipe, training), None
    )
    views = recipe.data.views
    sizes = {"image": views.image_size, "student": views.student_size, "teacher": views.teacher_size}
    batch: dict[str, Tensor] = {
        name: torch.rand(batch_size, 3, *height_width(size), device=device()) * 2 - 1
        for name, size in sizes.items()
        if size
    }
    batch["label"] = torch.zeros(batch_size, dtype=torch.int64, device=device())
    phases = dict(training.phases.items())
    keep, late = (KEEP if gpu else 9), 10**6  # adversarial terms have begun

    def one_step() -> None:
        loop.accumulate(
            phases, batch, keep, late, 1.0, True, lambda: torch.autocast(device().type, torch.bfloat16)
        )
        optim.update(recipe, training, state)
        training.after_step(late)
        state.ema.update()

    return one_step, lambda: task_of(recipe).compile(training)


def _timed_recipe_step(way: str, gpu: bool) -> tuple[float, int, float, int]:
    """(seconds, bytes at the peak, seconds of the first step, counted FLOPs of the eager step) of a step."""
    from torch.utils.flop_counter import FlopCounterMode

    one_step, compile_model = _whole_step(gpu)
    with FlopCounterMode(display=False) as counter:
        one_step()
    if way == "compiled":
        compile_model()
    synchronise()
    began = time.perf_counter()
    one_step()
    synchronise()
    first = time.perf_counter() - began
    seconds = interleaved({"step": one_step}, rounds=15 if gpu else 3)["step"]
    return seconds, torch.cuda.max_memory_allocated() if gpu else 0, first, counter.get_total_flops()


def _profiled(gpu: bool) -> list[str]:
    from torch.profiler import ProfilerActivity, profile

    one_step, _ = _whole_step(gpu)
    step_seconds = interleaved({"step": one_step}, rounds=3)["step"]
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiler:
        one_step()
        synchronise()
    events = profiler.key_averages()
    if gpu:  # operators carry their kernels' time besides: kernels alone add up to the step
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        times = {event.key: event.self_device_time_total for event in kernels}
        launched = f"{sum(event.count for event in kernels):,} kernels"
    else:
        times = {event.key: event.self_cpu_time_total for event in events}
        launched = f"{sum(event.count for event in events):,} operators"
    total = sum(times.values())
    shown = sorted(times, key=lambda name: -times[name])[:24]
    # Where kernels fill less than the step, the device waits for them to be launched.
    head = f"profile of a recipe step: {launched}, {total / 1e3:.0f} ms in all, in a step of {step_seconds * 1e3:.0f} ms:"
    return [head] + [
        f"  {times[name] / total:6.1%} {times[name] / 1e3:8.2f} ms  {_short(name)}" for name in shown
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
        recipe = _recipe(
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


def _machine_rates() -> tuple[float, float]:
    """(FLOP/s of a bfloat16 matrix product, bytes/s read and written by a copy) of the device, on random data."""
    side = MATRIX_SIDE if torch.cuda.is_available() else 2048
    left, right = (torch.randn(side, side, device=device()).bfloat16() for _ in range(2))
    size = COPY_BYTES if torch.cuda.is_available() else COPY_BYTES // 8
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    times = interleaved({"product": lambda: left @ right, "copy": lambda: target.copy_(source)}, rounds=9)
    return 2 * side**3 / times["product"], 2 * size / times["copy"]


MEASUREMENTS = {f.__name__: f for f in (recipe_step, recipe_step_compiled, recipe_profile, recipe_loaded)}
