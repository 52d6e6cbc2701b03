"""One optimizer step of a recipe, measured on this machine with procedural images of the recipe's size."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergevq.config import config, parse
from mergevq.ema import Ema
from mergevq.errors import InputError
from mergevq_platform import loop, optim
from mergevq_platform.operations.planning.activations import saved_for_backward
from mergevq_platform.operations.planning.synthetic import (
    SyntheticSamples,
    input_seconds_of,
    kept_counts,
    micro_batches,
    with_images,
)
from mergevq_platform.recipe import FindRun, Recipe
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.checkpoints import TrainingState
from mergevq_platform.tasks.task import Worker, task_of

REPEATS = 7
FOREVER = 10**9  # a step at which everything that starts late has started


@config
class StepMeasurement:
    """Time and memory of a recipe's step on one device; `mergevq plan --save` writes it, `--measured` reads it."""

    recipe: str
    machine: str  # device and threads
    device: str  # cpu or cuda
    micro_batch: int  # images of the larger micro-batch measured
    call_seconds: float  # of forward and backward of a micro-batch, whatever its size
    image_seconds: float  # and for each image in it
    update_seconds: float  # clipping, optimizers, moving average: once a step
    input_seconds: float  # one core's work to decode and augment an image; 0 where codes are read
    gradient_bytes: int  # what all-reduce adds up in a step
    state_bytes: int  # parameters, buffers, gradients, optimizer and moving average, frozen networks too
    activation_bytes: float  # of an image, kept for the backward pass, at the largest kept count
    checkpoint_bytes: int
    flops: float  # of an image, forward and backward


def measure(
    recipe: Recipe,
    *,
    device: torch.device | None = None,
    micro_batch: int | None = None,
    repeats: int = REPEATS,
    find_run: FindRun | None = None,
) -> StepMeasurement:
    """Measure a step of `recipe` on `device` (default: the GPU, else as many CPU threads as torch is set to).

    `micro_batch` is that of the recipe by default; for sizes alone one repeat suffices. Losses that start later in training
    are measured as started, the kept count is the mean of what the recipe draws (memory: the largest), `compile` is left
    off. A generator learns random codes, or encodes images first where its recipe does. `find_run` is that of `recipe.resolve`.
    Raises `InputError` if weights files, a tokenizer or a generator that the recipe builds on are missing.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    large = micro_batch or recipe.largest_micro_batch
    small = max(1, large // 4)
    with tempfile.TemporaryDirectory(prefix="mergevq-plan-") as folder:
        resolved, dataset = with_images(recipe, Path(folder) / "images", max(64, 2 * large), find_run)
        task = task_of(resolved)
        samples = SyntheticSamples(dataset, task.classes() or dataset.num_classes)
        training = loop.build(resolved, samples).to(device).to(memory_format=optim.layout(resolved))
        state = TrainingState(
            training, Ema(training.model(), recipe.ema_decay), optim.make_optimizers(recipe, training)
        )
        feed = task.open_feed(resolved, dataset, Worker(device=device)) if task.reads_images else None
        autocast = optim.autocast(resolved, device)
        keep, most = kept_counts(resolved)
        batches = micro_batches(resolved, dataset, large, keep)

        def micro_step(batch: dict[str, Tensor], kept: int | None) -> None:
            moved = feed.batch(batch, kept) if feed else {name: v.to(device) for name, v in batch.items()}
            loop.accumulate(dict(training.phases.items()), moved, kept, FOREVER, 1.0, True, autocast)

        def update() -> None:
            optim.update(recipe, training, state)
            training.after_step(FOREVER)
            state.ema.update()

        micro_step(batches[0], keep)
        update()  # the optimizers' state exists from here on
        fewer = {name: value[:small] for name, value in batches[0].items()}
        times: dict[str, list[float]] = {"large": [], "small": [], "update": []}
        for repeat in range(repeats):
            full = batches[repeat % len(batches)]
            times["large"].append(_seconds(partial(micro_step, full, keep), device))
            times["small"].append(_seconds(lambda: micro_step(fewer, keep), device))
            times["update"].append(_seconds(update, device))
        with saved_for_backward() as saved:
            micro_step(micro_batches(resolved, dataset, large, most)[0] if feed is None else batches[0], most)
        flops = _flops(lambda: micro_step(batches[0], keep))
        # The fastest of each: what else the machine does can only add to a time.
        whole = min(times["large"])
        per_image = _seconds_per_image(whole, large, min(times["small"]), small)
        checkpoints.write(Path(folder) / "checkpoint", state, resolved, fingerprint=dataset.fingerprint)
        written = sum(file.stat().st_size for file in (Path(folder) / "checkpoint").iterdir())
        own = {tensor.untyped_storage().data_ptr() for tensor in _tensors(training)}
        gradients = _bytes([p for p in training.parameters() if p.requires_grad])
        encoder = _tensors(feed.encoder) if feed and feed.encoder else []
        return StepMeasurement(
            recipe=recipe.name,
            machine=_machine(device),
            device=device.type,
            micro_batch=large,
            call_seconds=whole - per_image * large,
            image_seconds=per_image,
            update_seconds=min(times["update"]),
            input_seconds=input_seconds_of(resolved, dataset) if task.reads_images else 0.0,
            gradient_bytes=gradients,
            state_bytes=_bytes(encoder) + _state_bytes(state) + gradients,
            activation_bytes=saved.peak_without(own) / large,
            checkpoint_bytes=written,
            flops=flops / large,
        )


def load_measurement(path: Path) -> StepMeasurement:
    """A measurement that `plan --save` wrote. Raises `InputError` for any other file."""
    try:
        tree = json.loads(path.read_text())
        if isinstance(tree, dict) and "picture_seconds" in tree:  # its name of before
            tree["image_seconds"] = tree.pop("picture_seconds")
        return parse(StepMeasurement, tree)
    except ValueError as error:
        raise InputError(f"{path} holds no measurement ({error}): write one with --save") from None


def _seconds_per_image(whole: float, large: int, part: float, small: int) -> float:
    """Seconds that each further image adds, from `whole` seconds for `large` images and `part` for `small`."""
    per_image = (whole - part) / (large - small) if large > small else whole / large
    return min(max(per_image, 0.0), whole / large)


def _state_bytes(state: TrainingState) -> int:
    """Bytes of parameters and buffers, frozen ones too, of the moving average and of the optimizers' states."""
    optimizers = sum(_bytes(_tensors_of(optimizer.state)) for optimizer in state.optimizers.values())
    averaged = list(state.ema.averaged.state_dict().values())
    return _bytes(_tensors(state.training)) + _bytes(averaged) + optimizers


def _flops(work: Callable[[], None]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _tensors(module: torch.nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _tensors_of(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return (
        [tensor for value in tree.values() for tensor in _tensors_of(value)]
        if hasattr(tree, "values")
        else []
    )


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} CPU thread{'s' * (threads > 1)}"
