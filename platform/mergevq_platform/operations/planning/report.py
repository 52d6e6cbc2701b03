"""A plan in words: the table of sizes, and the conclusions for a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mergevq_platform.flops import stated_peak
from mergevq_platform.operations.planning.measuring import StepMeasurement
from mergevq_platform.operations.planning.prediction import ScalingPrediction, efficiency, stops_scaling
from mergevq_platform.recipe import Recipe


def table(rows: Sequence[ScalingPrediction], asked: tuple[int, int]) -> Table:
    """The predictions as a table; the size that was asked for is marked."""
    ordered = sorted(rows, key=lambda row: row.workers)
    made = Table(box=None, padding=(0, 1), pad_edge=False)
    for title in (
        "",
        "nodes",
        "micro",
        "memory",
        "step",
        "all-reduce",
        "efficiency",
        "images/s",
        "epoch",
    ):
        made.add_column(title, no_wrap=True)
    for row in ordered:
        made.add_row(
            "*" if (row.nodes, row.gpus) == asked else "",
            f"{row.nodes} x {row.gpus}",
            f"{row.accumulation} x {row.micro_batch}",
            f"{row.memory_bytes / 2**20:,.0f} MiB",
            f"{row.step_seconds * 1e3:.0f} ms",
            f"{row.all_reduce_share:.0%}",
            f"{efficiency(row, ordered[0]):.0%}",
            f"{row.images_per_second:.0f}",
            f"{row.epoch_hours:.3g} h",
        )
    return made


def describe(measured: StepMeasurement, precision: str) -> str:
    """A measurement in one line; `precision` is the recipe's, by which the maker states a device's rate."""
    seconds = measured.call_seconds + (measured.image_seconds * measured.micro_batch)
    rate = measured.flops * measured.micro_batch / seconds
    peak = stated_peak(measured.machine, precision)
    share = f", {rate / peak:.1%} of the {peak / 1e12:g} that its maker states" if peak else ""
    return (
        f"{measured.call_seconds * 1e3:.1f} ms a micro-batch and {measured.image_seconds * 1e3:.2f} ms an image in it, "
        f"{measured.update_seconds * 1e3:.1f} ms an update; {measured.flops / 1e9:.2f} GFLOP an image; at {measured.micro_batch} "
        f"images {measured.micro_batch / seconds:.1f} images/s and {rate / 1e12:.3g} TFLOP/s{share}"
    )


def conclusions(
    recipe: Recipe,
    measured: StepMeasurement,
    asked: ScalingPrediction,
    rows: Sequence[ScalingPrediction],
    *,
    memory_gib: float | None = None,
) -> list[str]:
    """The conclusions of a plan: whether it fits, what bounds it, its checkpoints, where more devices stop paying."""
    lines = [
        f"memory of a device: {measured.state_bytes / 2**20:,.0f} MiB of state and {measured.activation_bytes / 2**20:.1f} MiB a "
        f"image: {asked.memory_bytes / 2**20:,.0f} MiB at micro_batch {asked.micro_batch}"
    ]
    if memory_gib is not None:
        room = memory_gib * 2**30 - (asked.memory_bytes - measured.activation_bytes * asked.micro_batch)
        fits = int(room // measured.activation_bytes) if measured.activation_bytes else 0
        lines.append(
            f"{memory_gib:g} GiB holds it"
            if asked.memory_bytes <= memory_gib * 2**30
            else f"{memory_gib:g} GiB does not hold it: lower micro_batch to {fits}"
            if fits > 0
            else f"{memory_gib:g} GiB does not hold it at any micro_batch"
        )
    lines.append(
        f"gradients: {measured.gradient_bytes / 2**20:.1f} MiB a step, {asked.all_reduce_seconds * 1e3:.1f} ms, of which the step waits "
        f"{asked.exposed_seconds * 1e3:.1f} ms ({asked.all_reduce_share:.0%})"
    )
    lines.append(
        "input: codes, which take no decoding"
        if measured.input_seconds == 0
        else f"images: {asked.input_cores:.1f} cores of every worker decode as fast as it computes"
        + (f" (data.loader_workers is {recipe.data.loader_workers})" if asked.input_cores > 0.5 else "")
    )
    lines.append(
        f"checkpoints: {asked.checkpoint_bytes / 2**20:.1f} MiB every {recipe.checkpoint_every * asked.step_seconds / 60:.1f} minutes, "
        f"{asked.checkpoint_bytes_per_second / 2**20:.2f} MiB/s to storage on average"
    )
    end = stops_scaling(rows)
    lines.append(
        f"stops scaling at {end.nodes} x {end.gpus}: a device there does {efficiency(end, min(rows, key=lambda r: r.workers)):.0%} of "
        f"what it does alone ({_cause(end)})"
        if end
        else f"scales as far as looked at, {max(row.workers for row in rows)} devices"
    )
    return lines


def _cause(row: ScalingPrediction) -> str:
    waiting = row.exposed_seconds / row.step_seconds
    return "all-reduce" if waiting > 0.25 else "too few images for each device: raise global_batch"
