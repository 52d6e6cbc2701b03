"""Memory, time and traffic of a recipe on N nodes of G devices, by arithmetic over a measured step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from mergevq.errors import InputError
from mergevq_platform.data import BatchPartition
from mergevq_platform.operations.planning.measuring import StepMeasurement
from mergevq_platform.recipe import Recipe

BACKWARD_SHARE = 2 / 3  # of a micro-batch's time: the backward pass costs twice the forward
CUDA_CONTEXT_BYTES = 1.0e9  # driver, kernels, libraries' workspaces
BUCKET_BYTES = 25 * 1024**2  # DistributedDataParallel's: each is one all-reduce, with its latency
WORTH_HALF = 0.5  # below this efficiency a device does less than half of what it does alone


@dataclass(frozen=True, kw_only=True)
class Links:
    """Links between devices; bandwidths in gigabits per second, one way, as links are sold."""

    within_gbps: float  # of a device, inside a node
    between_gbps: float  # of a node, shared by its devices
    latency_seconds: float = 30e-6  # of one all-reduce call per hop
    overlap: float = (
        0.0  # share of the last backward pass that all-reduce can hide behind; DDP on GPUs: about 0.8
    )


@dataclass(frozen=True)
class ScalingPrediction:
    """A recipe on so many devices."""

    nodes: int
    gpus: int
    micro_batch: int
    accumulation: int  # micro-batches of a worker in a step
    memory_bytes: float  # of a device (CPU: of a worker's process, the interpreter aside)
    compute_seconds: float
    all_reduce_seconds: float  # what it takes
    exposed_seconds: float  # what of it the step waits for
    input_cores: float  # cores of a worker that decode images as fast as it takes them
    step_seconds: float
    epoch_hours: float
    checkpoint_bytes: int
    checkpoint_bytes_per_second: float  # averaged over the run
    images_per_second: float

    @property
    def workers(self) -> int:
        """Devices in all."""
        return self.nodes * self.gpus

    @property
    def all_reduce_share(self) -> float:
        """Share of a step that is spent waiting for gradients."""
        return self.exposed_seconds / self.step_seconds


def predict(
    recipe: Recipe, measured: StepMeasurement, *, nodes: int, gpus: int, links: Links, images: int
) -> ScalingPrediction:
    """The recipe, batch unchanged, on `nodes` of `gpus` devices each, an epoch being `images` images.

    Batches are dealt as training deals them; a step takes as long as the worker with most images in each pass. Raises
    `InputError` where training would refuse so many workers.
    """
    for option, value in (("--nodes", nodes), ("--gpus", gpus)):
        if value < 1:
            raise InputError(f"{option} {value}: it must be at least 1")
    workers = nodes * gpus
    if workers > recipe.global_batch:
        raise InputError(
            f"global_batch {recipe.global_batch} has fewer images than there are workers, {workers}: lower --nodes or --gpus, or "
            "raise the batch"
        )
    accumulation = BatchPartition.of(
        recipe.global_batch, recipe.micro_batch or measured.micro_batch, workers
    ).passes
    micro = -(-recipe.global_batch // (accumulation * workers))
    share = -(-recipe.global_batch // workers)
    micro_seconds = measured.call_seconds + measured.image_seconds * micro
    compute = accumulation * micro_seconds + measured.update_seconds
    cores = share * measured.input_seconds / compute
    # On CPUs the loading thread takes its time from the model's; beside a GPU it has cores of its own.
    loading = (
        share * measured.input_seconds
        if recipe.data.loader_workers == 0 and measured.device == "cpu"
        else 0.0
    )
    all_reduce = all_reduce_seconds(measured.gradient_bytes, nodes, gpus, links)
    exposed = max(0.0, all_reduce - links.overlap * BACKWARD_SHARE * micro_seconds)
    step = compute + loading + exposed
    steps_per_epoch = images // recipe.global_batch
    return ScalingPrediction(
        nodes=nodes,
        gpus=gpus,
        micro_batch=micro,
        accumulation=accumulation,
        memory_bytes=measured.state_bytes
        + measured.activation_bytes * micro
        + (CUDA_CONTEXT_BYTES if measured.device == "cuda" else 0.0),
        compute_seconds=compute,
        all_reduce_seconds=all_reduce,
        exposed_seconds=exposed,
        input_cores=cores,
        step_seconds=step,
        epoch_hours=steps_per_epoch * step / 3600,
        checkpoint_bytes=measured.checkpoint_bytes,
        checkpoint_bytes_per_second=measured.checkpoint_bytes / (recipe.checkpoint_every * step),
        images_per_second=recipe.global_batch / step,
    )


def all_reduce_seconds(count: float, nodes: int, gpus: int, links: Links) -> float:
    """A ring over all devices: each sends and receives 2 (w - 1) / w of the gradients, over the slowest link of the ring.

    A ring passes each node's link to others once, whatever the number of its devices.
    """
    workers = nodes * gpus
    if workers == 1:
        return 0.0
    slowest = min(([links.within_gbps] if gpus > 1 else []) + ([links.between_gbps] if nodes > 1 else []))
    moved = 2 * (workers - 1) / workers * count
    calls = math.ceil(count / BUCKET_BYTES)
    return moved * 8 / (slowest * 1e9) + calls * 2 * (workers - 1) * links.latency_seconds


def scaling(
    recipe: Recipe, measured: StepMeasurement, *, nodes: int, gpus: int, links: Links, images: int
) -> list[ScalingPrediction]:
    """From one device to twice as many as asked, doubling, as far as training takes so many."""
    sizes = [(1, g) for g in _doublings(gpus)] + [(n, gpus) for n in _doublings(2 * nodes)[1:]]
    rows = []
    for n, g in dict.fromkeys([*sizes, (nodes, gpus)]):
        with suppress(InputError):
            rows.append(predict(recipe, measured, nodes=n, gpus=g, links=links, images=images))
    return rows


def efficiency(prediction: ScalingPrediction, alone: ScalingPrediction) -> float:
    """The throughput of a device among others, as a share of its throughput alone."""
    return alone.step_seconds / (prediction.step_seconds * prediction.workers)


def stops_scaling(rows: Sequence[ScalingPrediction]) -> ScalingPrediction | None:
    """The first size at which a device has less than half of its throughput alone; None within `rows`."""
    ordered = sorted(rows, key=lambda row: row.workers)
    return next((row for row in ordered if efficiency(row, ordered[0]) < WORTH_HALF), None)


def on_device(measured: StepMeasurement, tflops: float) -> StepMeasurement:
    """The measurement moved to a device that does `tflops` of this work in a second (achieved, not its peak).

    Time goes by counted FLOPs; what a call costs whatever its size is left out, so small micro-batches come out too well.
    """
    return measured.__class__(
        **{
            **vars(measured),
            "machine": f"a device of {tflops:g} TFLOP/s",
            "device": "cuda",
            "call_seconds": 0.0,
            "image_seconds": measured.flops / (tflops * 1e12),
            "update_seconds": 0.0,
        }
    )


def _doublings(most: int) -> list[int]:
    return [2**k for k in range(most.bit_length()) if 2**k <= most]
