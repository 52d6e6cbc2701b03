"""Stage 2 and evaluation at the size that papers publish, on a GPU; on a CPU the same code, smaller."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import device, in_fresh_process, interleaved, process_peak_bytes, synchronise

GPU = torch.cuda.is_available()
# Published beside it: RAR-L, about 93 images/s on an A100.
STAGE_2 = ("raster_l", 64) if GPU else ("tiny_raster", 16)
IMAGES, MANIFOLD, NEIGHBOURS, CLASSES = (50_000, 10_000, 50_000, 1000) if GPU else (96, 1_000, 5_000, 100)
BATCH = 64 if GPU else 16


def stage_two() -> list[str]:
    """Images/s and share of the stated peak of a generator's training step on codes: bfloat16, AdamW, clipped gradients."""
    preset, batch = STAGE_2
    seconds, flops, peak, first = in_fresh_process(_stage_two, preset, batch)
    from mergevq_platform.flops import stated_peak

    stated = stated_peak(torch.cuda.get_device_name(), "bfloat16") if GPU else None
    share = (
        f", {flops / seconds / stated:.1%} of the {stated / 1e12:.0f} TFLOP/s that are stated"
        if stated
        else ""
    )
    return [
        f"stage 2 {preset}, batch {batch}, bfloat16, codes at hand: {batch / seconds:.1f} images/s, {seconds * 1e3:.0f} ms, "
        f"{flops / seconds / 1e12:.2f} TFLOP/s{share}; {peak / 1e9:.1f} GB at the peak; first step {first:.1f} s"
    ]


def _stage_two(preset: str, batch: int) -> tuple[float, int, int, float]:
    """(seconds of a step, its counted FLOPs, bytes at the peak, seconds of the first step)."""
    from torch.utils.flop_counter import FlopCounterMode

    from mergevq.generation import build_generator, generator_preset
    from mergevq.training.generator import GeneratorTraining
    from mergevq_platform import optim
    from mergevq_platform.adamw import FusedAdamW

    torch.manual_seed(0)
    optim.prefer_speed(device())
    generator = build_generator(generator_preset(preset)).to(device())
    config = generator.config
    training = GeneratorTraining(generator)
    optimizer = FusedAdamW([{"params": list(training.parameters())}], lr=4e-4, betas=(0.9, 0.99))
    codes = {
        "indices": torch.randint(0, 2 ** sum(config.sub_bits), (batch, config.grid_tokens), device=device()),
        "assignment": torch.arange(config.grid_tokens, device=device()).expand(batch, -1),
        "label": torch.arange(batch, device=device()) % config.classes,
    }

    def step() -> None:
        with torch.autocast(device().type, torch.bfloat16):
            output = training.phases["generator"](codes, {}, keep=config.grid_tokens, step=0)
        output.total.backward()
        torch.nn.utils.clip_grad_norm_(training.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    began = time.perf_counter()
    step()
    synchronise()
    first = time.perf_counter() - began
    with FlopCounterMode(display=False) as counter:
        step()
    seconds = interleaved({"step": step}, rounds=9)["step"]
    return seconds, counter.get_total_flops(), process_peak_bytes(), first


def evaluation() -> list[str]:
    """Images through Inception (random weights of its shape) and its statistics; precision and recall, and k-NN, of as many
    features as a published evaluation has."""
    passed = in_fresh_process(_passed, IMAGES)
    twice = in_fresh_process(_passed, 2 * IMAGES) if not GPU else passed
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2 * MANIFOLD, 2048, generator=generator).to(device())
    bank = torch.randn(NEIGHBOURS, 768, generator=generator).to(device())
    labels = torch.arange(NEIGHBOURS, device=device()) % CLASSES
    from mergevq.metrics import knn_classify, precision_recall

    manifold = _once(lambda: precision_recall(features[:MANIFOLD], features[MANIFOLD:]))
    questions = NEIGHBOURS // 5
    neighbours = _once(lambda: knn_classify(bank, labels, bank[:questions], labels[:questions]))
    more = "" if GPU else f"; {(twice[1] - passed[1]) / 2**20:+.0f} MiB for twice as many"
    return [
        f"evaluation, {IMAGES:,} images of 256 px through Inception and its statistics: {IMAGES / passed[0]:.1f} images/s, "
        f"{passed[1] / 1e9:.2f} GB at the peak{more}",
        f"precision and recall of {MANIFOLD:,} against {MANIFOLD:,} x 2,048: {manifold:.1f} s; "
        f"k-NN of {questions:,} among {NEIGHBOURS:,} x 768: {neighbours:.1f} s",
    ]


def _passed(count: int) -> tuple[float, int]:
    """(seconds of `count` images through network and statistics, bytes at the peak)."""
    from mergevq.metrics.frechet import FeatureStatistics
    from mergevq.metrics.inception import Inception, resized

    torch.manual_seed(0)
    network = Inception().to(device())
    pool, spatial = FeatureStatistics(), FeatureStatistics()
    images = torch.randint(0, 256, (BATCH, 3, 256, 256), dtype=torch.uint8, device=device())

    def batch() -> None:
        with torch.inference_mode():
            found = network(resized(images, "torch_fidelity"))
        pool.update(found.pool)
        spatial.update(found.spatial)

    batch()
    synchronise()
    began = time.perf_counter()
    for _ in range(count // BATCH):
        batch()
    synchronise()
    seconds = time.perf_counter() - began
    pool.moments()
    return seconds * count / (count // BATCH * BATCH), process_peak_bytes()


def _once(work: Callable[[], Any]) -> float:
    synchronise()
    began = time.perf_counter()
    work()
    synchronise()
    return time.perf_counter() - began


MEASUREMENTS: dict[str, Callable[[], list[str]]] = {f.__name__: f for f in (stage_two, evaluation)}
