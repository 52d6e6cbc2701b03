"""One optimizer step of a recipe, measured on this machine with procedural pictures of the recipe's size."""

from __future__ import annotations

import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergevq.config import config, to_tree
from mergevq.ema import Ema
from mergevq_platform import loop, optim
from mergevq_platform.data import (
    Dataset,
    Deal,
    TrainStream,
    make_views,
    open_dataset,
    write_shapes,
)
from mergevq_platform.recipe import Recipe, ResolvedRecipe, parse_resolved, resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.checkpoints import TrainingState
from mergevq_platform.tasks.task import Worker, task_of

REPEATS = 7
INPUT_PICTURES = 32
KEEP_DRAWS = 256
FOREVER = 10**9  # a step at which everything that starts late has started


@config
class Measured:
    """What a step of a recipe takes on one device; `mergevq plan --save` writes it, `--measured` reads it."""

    recipe: str
    machine: str  # device and threads
    device: str  # cpu or cuda
    micro_batch: int  # pictures of the larger micro-batch measured
    call_seconds: float  # of forward and backward of a micro-batch, whatever its size
    picture_seconds: float  # and for each picture in it
    update_seconds: float  # clipping, optimizers, moving average: once a step
    input_seconds: float  # one core's work to decode and augment a picture; 0 where codes are read
    gradient_bytes: int  # what all-reduce adds up in a step
    state_bytes: int  # parameters, buffers, gradients, optimizer and moving average, frozen networks too
    activation_bytes: float  # of a picture, kept for the backward pass, at the largest kept count
    checkpoint_bytes: int
    flops: float  # of a picture, forward and backward


def measure(
    recipe: Recipe,
    *,
    device: torch.device | None = None,
    micro_batch: int | None = None,
    repeats: int = REPEATS,
) -> Measured:
    """Measure a step of `recipe` on `device` (default: the GPU, else as many CPU threads as torch is set to).

    `micro_batch` is that of the recipe by default; for sizes alone one repeat suffices. Losses that start later in training
    are measured as started, the kept count is the mean of what the recipe draws (memory: the largest), `compile` is left
    off. A generator learns random codes, or encodes pictures first where its recipe does. Raises `InputError` if weights
    files, a tokenizer or a generator that the recipe builds on are missing.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    large = micro_batch or recipe.largest_micro_batch
    small = max(1, large // 4)
    with tempfile.TemporaryDirectory(prefix="mergevq-plan-") as folder:
        resolved, dataset = _with_pictures(recipe, Path(folder) / "pictures", max(64, 2 * large))
        task = task_of(resolved)
        training = loop.build(resolved, _Samples(dataset, task.classes() or dataset.num_classes)).to(device)
        state = TrainingState(
            training, Ema(training.model(), resolved.ema_decay), optim.make_optimizers(resolved, training)
        )
        feed = task.open_feed(resolved, dataset, Worker(device=device)) if task.reads_images else None
        autocast = optim.autocast(resolved, device)
        keep, most = _kept_counts(resolved)
        batches = _batches(resolved, dataset, large, keep)

        def micro_step(batch: dict[str, Tensor], kept: int | None) -> None:
            moved = feed.batch(batch, kept) if feed else {name: v.to(device) for name, v in batch.items()}
            loop.accumulate(dict(training.phases.items()), moved, kept, FOREVER, 1.0, True, autocast)

        def update() -> None:
            optim.update(resolved, training, state)
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
            micro_step(_batches(resolved, dataset, large, most)[0] if feed is None else batches[0], most)
        flops = _flops(lambda: micro_step(batches[0], keep))
        # The fastest of each: what else the machine does can only add to a time.
        whole, part = min(times["large"]), min(times["small"])
        per_picture = (whole - part) / (large - small) if large > small else whole / large
        per_picture = min(max(per_picture, 0.0), whole / large)
        checkpoints.write(Path(folder) / "checkpoint", state, resolved, fingerprint=dataset.fingerprint)
        written = sum(file.stat().st_size for file in (Path(folder) / "checkpoint").iterdir())
        own = {tensor.untyped_storage().data_ptr() for tensor in _tensors(training)}
        trained = [p for p in training.parameters() if p.requires_grad]
        encoder = _tensors(feed.encoder) if feed and feed.encoder else []
        return Measured(
            recipe=recipe.name,
            machine=_machine(device),
            device=device.type,
            micro_batch=large,
            call_seconds=whole - per_picture * large,
            picture_seconds=per_picture,
            update_seconds=min(times["update"]),
            input_seconds=_input_seconds(resolved, dataset) if task.reads_images else 0.0,
            gradient_bytes=_bytes(trained),
            state_bytes=_bytes(_tensors(training) + encoder)
            + _bytes(trained)
            + _bytes(list(state.ema.averaged.state_dict().values()))
            + sum(_bytes(_tensors_of(optimizer.state)) for optimizer in state.optimizers.values()),
            activation_bytes=saved.peak_without(own) / large,
            checkpoint_bytes=written,
            flops=flops / large,
        )


def _with_pictures(recipe: Recipe, folder: Path, count: int) -> tuple[ResolvedRecipe, Dataset]:
    """The recipe on procedural pictures, and these."""
    # Random codes stand in for a code set, which need not be here.
    resolved = resolve(recipe) if task_of(recipe).reads_images else parse_resolved(to_tree(recipe))
    size = recipe.data.views.image_size
    write_shapes(folder, images=count, val_images=1, size=size, seed=0)
    data = replace(recipe.data, path=str(folder), train_split="train", image_column=None, label_column=None)
    resolved = replace(resolved, data=data, compile=False)
    return resolved, open_dataset(data.path, data.train_split)


@dataclass(frozen=True)
class _Samples:
    """Pictures, said to be of as many classes as a model knows that was made for others."""

    pictures: Dataset
    num_classes: int
    labelled: bool = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pictures, name)


def _kept_counts(recipe: Recipe) -> tuple[int | None, int | None]:
    """(the reachable count nearest to the mean of those drawn, the largest)."""
    task, seed = recipe.task, recipe.seed
    drawn = [keep for step in range(KEEP_DRAWS) if (keep := task.draw_keep(seed, step)) is not None]
    if not drawn:
        return None, None
    mean = sum(drawn) / len(drawn)
    return min(set(drawn), key=lambda keep: abs(keep - mean)), max(task.kept_counts())


def _batches(recipe: Recipe, dataset: Dataset, micro_batch: int, keep: int | None) -> list[dict[str, Tensor]]:
    """Two micro-batches as the recipe's data come: pictures, or codes at `keep`."""
    random = [task_of(recipe).random_batch(micro_batch, keep, seed) for seed in range(2)]
    if not any(batch is None for batch in random):
        return [batch for batch in random if batch is not None]
    stream = TrainStream(
        dataset, recipe.data.views, deal=Deal(micro_batch, passes=1, workers=1), seed=recipe.seed
    )
    with stream:
        source = iter(stream)
        return [next(source)[0] for _ in range(2)]


def _input_seconds(recipe: Recipe, dataset: Dataset) -> float:
    rows = dataset.read(list(range(INPUT_PICTURES)))
    began = time.process_time()
    for row in rows:
        make_views(dataset.image(row), recipe.data.views, seed=recipe.seed, epoch=0, sample=row.sample)
    return (time.process_time() - began) / len(rows)


class Saved:
    """Bytes that autograd holds for the backward pass: now, and at the most."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}  # storage -> [bytes, holders]
        self.peaks: dict[int, int] = {}
        self.now = self.peak = 0

    def hold(self, tensor: Tensor) -> Any:
        """Count a saved tensor's storage, once however often it is saved."""
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        entry = self.held.setdefault(key, [size, 0])
        if entry[1] == 0:
            self.now += size
        entry[1] += 1
        if self.now > self.peak:
            self.peak = self.now
            self.peaks = {place: held[0] for place, held in self.held.items() if held[1]}
        holder = _Holder(tensor)
        weakref.finalize(holder, self._release, key)
        return holder

    def _release(self, key: int) -> None:
        entry = self.held[key]
        entry[1] -= 1
        if entry[1] == 0:
            self.now -= entry[0]
            del self.held[key]

    def peak_without(self, own: set[int]) -> int:
        """Bytes at the peak, without storages that are there anyway (parameters)."""
        return sum(size for place, size in self.peaks.items() if place not in own)


class _Holder:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@contextmanager
def saved_for_backward() -> Iterator[Saved]:
    """Count what autograd saves within the context; on any device, to the byte."""
    saved = Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.hold, lambda holder: holder.tensor):
        yield saved


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
