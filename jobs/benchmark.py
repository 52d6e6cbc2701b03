"""Measures what we claim about speed and memory: medians of interleaved runs, and ratios within one run.

    python jobs/benchmark.py                 every measurement, about ten minutes on two cores
    python jobs/benchmark.py encoder lfq     only these
    python jobs/benchmark.py --json FILE     also as JSON

Absolute times belong to the machine named at the top; the ratios are what carries over.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MEBIBYTE = 1024**2


def interleaved(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each way, taken in turn so that a machine that slows down slows all of them."""
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            synchronise()
            began = time.perf_counter()
            way()
            synchronise()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def device() -> torch.device:
    """The device measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_bytes(work: Callable[[], Any]) -> int:
    """Extra memory that `work` needs at its peak: on the GPU as allocated, on the CPU of a fresh process's high-water mark."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def encoder() -> list[str]:
    """Encoder time and counted FLOPs at keep = N, N/2, N/4: merging must save work, not mask it."""
    from torch.utils.flop_counter import FlopCounterMode

    import mergevq

    tokenizer = mergevq.create("gr_256_d32").to(device()).eval()
    images = torch.rand(1, 3, 256, 256, device=device()) * 2 - 1
    transformer = tokenizer.encoder
    flops = {}
    with torch.inference_mode():
        for keep in (256, 128, 64):
            with FlopCounterMode(display=False) as counter:
                transformer(images, keep)
            flops[keep] = counter.get_total_flops()
        times = interleaved({str(keep): lambda k=keep: transformer(images, k) for keep in flops}, rounds=5)
    base_time, base_flops = times["256"], flops[256]
    return [
        f"encoder gr_256_d32, 1 x 256 px, keep {keep}: {times[str(keep)] * 1e3:.0f} ms ({times[str(keep)] / base_time:.2f} of keep N), "
        f"{flops[keep] / 1e9:.1f} GFLOP ({flops[keep] / base_flops:.2f})"
        for keep in flops
    ]


def lfq() -> list[str]:
    """LFQ's exact entropy: memory at 4,096 tokens of 2^18 codes, and time against the materialised form where that fits."""
    from mergevq.quantize import LFQ, LFQConfig

    def ours(tokens: int, bits: int) -> Callable[[], None]:
        quantizer = LFQ(LFQConfig(bits=bits)).to(device())
        latents = (torch.randn(1, tokens, bits, device=device()) * 0.05).requires_grad_()

        def work() -> None:
            losses = quantizer.losses(latents)
            (losses["sample_entropy"] - losses["codebook_entropy"]).backward()
            latents.grad = None

        return work

    def materialised(tokens: int, bits: int) -> Callable[[], None]:
        powers = torch.arange(bits, device=device())
        codebook = ((torch.arange(2**bits, device=device())[:, None] >> powers & 1) * 2 - 1).float()
        latents = (torch.randn(tokens, bits, device=device()) * 0.05).requires_grad_()

        def work() -> None:
            log_p = (2 * latents @ codebook.T / 0.01).log_softmax(-1)
            p = log_p.exp()
            mean = p.mean(0)
            (-(p * log_p).sum(-1).mean() + (mean * (mean + 1e-5).log()).sum()).backward()
            latents.grad = None

        return work

    ours(16, 18)()  # libraries' own memory comes first
    extra = peak_bytes(ours(4096, 18))
    tokens, bits = 128, 18
    times = interleaved({"ours": ours(tokens, bits), "materialised": materialised(tokens, bits)}, rounds=3)
    return [
        f"LFQ entropy, 4096 tokens, 2^18 codes: {extra / MEBIBYTE:.0f} MiB extra at the peak (target: under 200)",
        f"LFQ entropy, {tokens} tokens, 2^18 codes: {times['ours'] * 1e3:.0f} ms, materialised {times['materialised'] * 1e3:.0f} ms: "
        f"{times['materialised'] / times['ours']:.0f} x (target: 20)",
    ]


def unmerge() -> list[str]:
    """Unmerge by gather against the dense product with the source matrix."""
    from mergevq.merging import Source, sizes, unmerge

    batch, cells, kept, width = 16, 1024, 256, 512
    tokens = torch.randn(batch, kept, width, device=device())
    assignment = torch.randint(0, kept, (batch, cells), device=device())
    matrix = Source(assignment, sizes(assignment, kept)).matrix()
    times = interleaved(
        {"gather": lambda: unmerge(tokens, assignment), "dense": lambda: matrix.transpose(1, 2) @ tokens},
        rounds=9,
    )
    return [
        f"unmerge {batch} x {kept} -> {cells} x {width}: gather {times['gather'] * 1e3:.1f} ms, dense {times['dense'] * 1e3:.1f} ms: "
        f"{times['dense'] / times['gather']:.1f} x; source kept as {cells * 8} bytes a picture, not {cells * kept * 4}"
    ]


def step() -> list[str]:
    """A whole stage-1 step: both forward passes, all losses, both updates; time, and peak memory of a fresh process."""
    return [
        _step(
            "gr_128_d32",
            batch=4,
            keep=36,
            target="4.5 s / 1.8 GB; the official code on 2 cores: 10.1-11.4 s / 5.5 GB",
        ),
        _step(
            "gr_256_d32",
            batch=2,
            keep=144,
            target="10 s / 2.5 GB; the official code on 2 cores: 23.3-25.8 s / 7.4 GB",
        ),
    ]


def _step(preset: str, *, batch: int, keep: int, target: str) -> str:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, peak = pool.apply(_timed_step, (preset, batch, keep))
    return f"stage-1 step {preset}, batch {batch}, keep {keep}: {seconds:.2f} s, {peak / 1e9:.2f} GB at the peak (target: {target})"


def _timed_step(preset: str, batch: int, keep: int) -> tuple[float, int]:
    import mergevq
    from mergevq.train_step import build_training

    torch.manual_seed(0)
    tokenizer = mergevq.create(preset)
    size = tokenizer.config.image_size
    losses = {"alignment": {"kind": "supervised", "classes": 1000}, "perceptual": {"kind": "none"}}
    training = build_training(losses, tokenizer).to(device())
    fused = torch.cuda.is_available()
    optimizers = {
        name: torch.optim.AdamW(
            [p for p in phase.parameters() if p.requires_grad], lr=1e-4, betas=(0.5, 0.9), fused=fused or None
        )
        for name, phase in training.phases.items()
    }
    pictures = {
        "image": torch.rand(batch, 3, size, size, device=device()) * 2 - 1,
        "student": torch.rand(batch, 3, size, size, device=device()) * 2 - 1,
        "label": torch.arange(batch, device=device()),
    }

    def one_step() -> None:
        carry: dict[str, Tensor] = {}
        for name, phase in training.phases.items():
            output = phase(pictures, carry, keep=keep, step=10**6)  # the adversarial terms have begun
            output.total.backward()
            carry = output.carry
            optimizers[name].step()
            optimizers[name].zero_grad(set_to_none=True)

    seconds = interleaved({"step": one_step}, rounds=3)["step"]
    peak = (
        torch.cuda.max_memory_allocated()
        if fused
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    return seconds, peak


def loader() -> list[str]:
    """Pictures per second of one core with all three views, decoding included."""
    from mergevq_platform.data import TrainStream, ViewsConfig, open_dataset, write_shapes

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
                    global_batch=64,
                    micro_batch=64,
                    seed=0,
                    rank=0,
                    world_size=1,
                    start_step=0,
                    workers=0,
                    bad_picture_limit=0,
                )
                with stream:
                    batches = iter(stream)
                    next(batches)
                    cpu, steps = time.process_time(), 6
                    for _ in range(steps):
                        next(batches)
                    rates.append(steps * 64 / (time.process_time() - cpu))
            lines.append(
                f"loader, {size} px, three views: {statistics.median(rates):.0f} pictures/s per core"
            )
    return lines


def ray_overhead() -> list[str]:
    """Seconds per step of the loop as a Ray Train worker against the same loop in a bare process, one worker each."""
    ratios, bares = [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MERGEVQ_HOME"] = folder
        from mergevq_platform.data import write_shapes

        write_shapes(Path(folder) / "data", images=2048, val_images=64, size=32, seed=0)
        for index in range(3):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                bare = pool.apply(_bare, (folder, index))
            through_ray = _through_ray(folder, index)
            ratios.append(through_ray / bare)
            bares.append(bare)
    return [
        f"training loop, {statistics.median(bares) * 1e3:.0f} ms a step bare: on Ray {statistics.median(ratios):.3f} of that "
        f"(runs: {', '.join(f'{r:.3f}' for r in ratios)}; target: at most 1.03)"
    ]


def _overhead_recipe(folder: str) -> Any:
    from mergevq_platform import recipe

    return recipe.load(
        "demo",
        [
            f"data.path={folder}/data",
            *("task.losses.alignment.kind=none", "cluster.workers=1", "cluster.device=cpu"),
            *("steps=80", "checkpoint_every=1000", "log_every=20"),
        ],
    )


def _bare(folder: str, index: int) -> float:
    from mergevq_platform import local, loop

    torch.set_num_threads(1)
    os.nice(15)  # as Ray's workers
    host = local.LocalHost(Path(folder) / f"bare-{index}")
    host.directory.mkdir()
    loop.train(_overhead_recipe(folder), loop.Worker(), host)
    return host.status["seconds_per_step"]


def _through_ray(folder: str, index: int) -> float:
    from mergevq_platform import trainer

    seen: list[float] = []

    def remember(outcome: Any, recorder: Any) -> None:
        import ray

        seen.append(ray.get(recorder.actor.latest.remote())[0]["seconds_per_step"])

    trainer.train(_overhead_recipe(folder), home=Path(folder), name=f"ray-{index}", after=remember)
    return seen[0]


MEASUREMENTS = {f.__name__: f for f in (encoder, lfq, unmerge, step, loader, ray_overhead)}


def main() -> None:
    """Print the chosen measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = set(options.names) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"no measurement {', '.join(sorted(unknown))}: choose of {', '.join(MEASUREMENTS)}")
    machine = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    )
    print(f"machine: {machine}; torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    report: dict[str, Any] = {"machine": machine, "torch": torch.__version__}
    for name in options.names or MEASUREMENTS:
        report[name] = MEASUREMENTS[name]()
        print("\n".join(report[name]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(main())
