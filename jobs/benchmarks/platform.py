"""The platform: what feeding images and running on Ray cost."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import in_fresh_process


def loader() -> list[str]:
    """Images per second of one core with all three views, decoding included."""
    from mergevq_platform.data import BatchPartition, TrainStream, ViewsConfig, open_dataset, write_shapes

    lines = []
    for size, count in ((64, 1024), (256, 256)):
        with tempfile.TemporaryDirectory() as folder:
            write_shapes(Path(folder), images=count, val_images=16, size=size, seed=0)
            dataset = open_dataset(folder, "train")
            views = ViewsConfig(image_size=size, student_size=size, teacher_size=size)
            rates = []
            for _ in range(3):
                stream = TrainStream(
                    dataset,
                    views,
                    partition=BatchPartition(64, passes=1, workers=1),
                    seed=0,
                    rank=0,
                    world_size=1,
                    start_step=0,
                    workers=0,
                    bad_image_limit=0,
                )
                with stream:
                    batches = iter(stream)
                    next(batches)
                    cpu, steps = time.process_time(), 6
                    for _ in range(steps):
                        next(batches)
                    rates.append(steps * 64 / (time.process_time() - cpu))
            lines.append(f"loader, {size} px, three views: {statistics.median(rates):.0f} images/s per core")
    return lines


def ray_overhead() -> list[str]:
    """Seconds per step of the loop as a Ray Train worker against the same loop in a bare process, one worker each."""
    ratios, bares = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MERGEVQ_HOME"] = folder
        from mergevq_platform.data import write_shapes

        write_shapes(Path(folder) / "data", images=2048, val_images=64, size=32, seed=0)
        for index in range(3):
            bare = in_fresh_process(_bare, folder, index)
            through_ray = _through_ray(folder, index)
            ratios.append(through_ray / bare)
            bares.append(bare)
    return [
        f"training loop, {statistics.median(bares) * 1e3:.0f} ms a step bare: on Ray {statistics.median(ratios):.3f} of that "
        f"(runs: {', '.join(f'{r:.3f}' for r in ratios)}; target: at most 1.03)"
    ]


def _overhead_recipe(folder: str) -> Any:
    from mergevq_platform import recipe

    chosen = recipe.load(
        "demo",
        [
            f"data.path={folder}/data",
            *("task.losses.alignment.kind=none", "cluster.workers=1", "cluster.device=cpu"),
            *("steps=80", "checkpoint_every=1000", "log_every=20"),
        ],
    )
    return recipe.resolve(chosen)


def _bare(folder: str, index: int) -> float:
    from mergevq_platform import loop
    from mergevq_platform.distributed import local

    torch.set_num_threads(1)
    os.nice(15)  # as Ray's workers
    host = local.LocalHost(Path(folder) / f"bare-{index}")
    host.directory.mkdir()
    loop.train(_overhead_recipe(folder), loop.Worker(), host)
    return host.status["seconds_per_step"]


def _through_ray(folder: str, index: int) -> float:
    from mergevq_platform.distributed import trainer

    seen: list[float] = []

    def remember(outcome: Any, recorder: Any) -> None:
        import ray

        seen.append(ray.get(recorder.actor.latest.remote())[0]["seconds_per_step"])

    trainer.train(_overhead_recipe(folder), home=Path(folder), name=f"ray-{index}", after=remember)
    return seen[0]


MEASUREMENTS = {f.__name__: f for f in (loader, ray_overhead)}
