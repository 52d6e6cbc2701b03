"""Generators: a cache saves passes, a forgetting cache saves memory, parallel decoding saves steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.timing import MEBIBYTE, device, interleaved, synchronise

LABEL = "12 x 768"


def _generator(name: str, **changes: Any) -> Any:
    """A generator in eval mode whose heads are not zero, so that codes differ."""
    from mergevq.config import merged, to_tree
    from mergevq.generation import build_generator, generator_preset, parse_generator

    torch.manual_seed(0)
    tree = merged(to_tree(generator_preset(name)), changes)
    generator = build_generator(parse_generator(tree)).to(device()).eval()
    with torch.no_grad():
        for head in generator.tokens.heads:
            head.get_parameter("weight").normal_(std=0.02)
    return generator


def _sample(generator: Any, batch: int, **options: Any) -> Callable[[], Any]:
    from mergevq.generation import sample

    options = {"sample_ids": torch.arange(batch), "seed": 0, **options}
    labels = torch.arange(batch, device=device()) % generator.config.classes
    return lambda: sample(generator, labels, **options)


def generation_target() -> list[str]:
    """12 x 768 over 256 cells, four samples with guidance 2 (`llamagen` measures it beside LlamaGen's own code).

    Beside it the time in which a copy would read the weights as often.
    """
    from mergevq.generation import GuidanceConfig

    lines, rate = [], _copy_rate()
    for dtype in (torch.float32, torch.bfloat16):
        if dtype == torch.bfloat16 and not _multiplies_bfloat16():
            lines.append(
                "bfloat16 weights: this processor does not multiply them (about a third of float32's speed)"
            )
            continue
        generator = _generator("raster_b").to(dtype)
        work = _sample(generator, 4, guidance=GuidanceConfig(scale=2.0))
        seconds = interleaved({"ours": work}, rounds=3)["ours"]
        limit = 256 * _weight_bytes(generator) / rate
        lines.append(
            f"raster {LABEL}, N = 256, batch 4, guidance 2, {str(dtype).removeprefix('torch.')} weights: {seconds:.1f} s, "
            f"{4 * 256 / seconds:.0f} tokens/s; {limit:.1f} s to read the weights at the copy rate of {rate / 1e9:.1f} GB/s "
            f"({seconds / limit:.1f} x that)"
        )
    return lines


def _multiplies_bfloat16() -> bool:
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _weight_bytes(generator: Any) -> int:
    """Bytes of weights that a step of one code reads."""
    return sum(
        parameter.numel()
        * parameter.element_size()
        # The intra-cell layers are read once per sub-token.
        * (len(generator.config.sub_bits) if name.startswith("tokens.intra") else 1)
        for name, parameter in generator.named_parameters()
        if not name.startswith(("classes", "tokens.embeddings"))
    )


def generation_graphs() -> list[str]:
    """Decoding on a GPU with its steps recorded as CUDA graphs, against launching every kernel."""
    from mergevq import cuda_graphs

    if not torch.cuda.is_available():
        return ["recorded decoding: needs a GPU"]
    lines = []
    for name, count, options in (("raster_b", 256, {}), ("random_order_b", 64, {"keep": 144, "steps": 64})):
        changes = {"keeps": [144]} if options else {}
        generator = _generator(name, **changes)
        recorded = _sample(generator, 4, **options)

        def launched(work: Callable[[], Any] = recorded) -> None:
            def call(_: Any, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
                return function(*arguments)

            with mock.patch.object(cuda_graphs.CudaGraphs, "__call__", call):
                work()

        times = interleaved({"recorded": recorded, "launched": launched}, rounds=5)
        lines.append(
            f"{name} {LABEL}, batch 4, {count} steps, float32: recorded {times['recorded']:.2f} s "
            f"({times['recorded'] / count * 1e3:.1f} ms a step), launched one by one {times['launched']:.2f} s: "
            f"{times['launched'] / times['recorded']:.1f} x"
        )
    return lines


def generation_cache() -> list[str]:
    """Decoding with the cache against running the whole sequence again for every cell, same codes."""
    from mergevq.generation import SamplingConfig

    lines = []
    for cells in (64, 256):
        generator = _generator("tiny_raster", grid_tokens=cells)
        greedy = SamplingConfig(temperature=0.0)
        labels = torch.arange(4, device=device())

        def again(generator: Any = generator, labels: Tensor = labels, cells: int = cells) -> Tensor:
            codes = torch.zeros(4, cells, dtype=torch.int64, device=device())
            with torch.inference_mode():
                for cell in range(cells):
                    prefix = generator.prefix(labels, None)
                    x = torch.cat([prefix, generator.tokens.embed(codes[:, :cell])], 1)
                    rotation = generator.sequence_rotation(1, generator.cell_rotation())[: cell + 1]
                    hidden = generator.transformer(x, rotation)[:, -1]
                    parts = generator.tokens.decode(hidden, lambda j, logits: logits.argmax(-1))
                    codes[:, cell] = generator.tokens.join(parts)
            return codes

        cached = _sample(generator, 4, sampling=greedy)
        same = (cached().indices == again()).float().mean()
        times = interleaved({"cached": cached, "again": again}, rounds=3)
        lines.append(
            f"4 x 192, N = {cells}, batch 4: cached {times['cached']:.2f} s, full re-computation {times['again']:.2f} s: "
            f"{times['again'] / times['cached']:.1f} x; {same:.1%} of the codes the same"
        )
    return lines


def generation_mergear() -> list[str]:
    """MergeAR's forgetting cache against the full one on codes that repeat as K of N kept tokens do."""
    lines = []
    sizes = (("mergear_b", 256, 4, (36, 144, 256)), ("mergear_b_1024", 1024, 1, (64, 256, 1024)))
    for name, cells, batch, keeps in sizes:
        generator = _generator(name, keeps=list(keeps), transformer={"depth": 3})
        lines += [_forgetting(generator, cells, keep, batch) for keep in keeps]
    return lines


def _forgetting(generator: Any, cells: int, keep: int, batch: int) -> str:
    from mergevq.generation import GuidanceConfig, raster

    labels = torch.arange(batch, device=device())
    script = generator.tokens.split(_repeating(batch, cells, keep)).double()
    sampler = _scripted(generator, GuidanceConfig(scale=2.0))
    held: dict[bool, int] = {}

    def run(compress: bool) -> None:
        with torch.inference_mode():
            *_, held[compress] = raster.decode(
                generator,
                sampler,
                labels,
                keep=keep,
                uniforms=script,
                compress=compress,
                limit_distinct=False,
            )

    rounds = 3 if cells <= 256 else 1  # at 1,024 cells one takes half a minute
    times = interleaved({"full": lambda: run(False), "compressed": lambda: run(True)}, rounds)
    rate = {way: batch * cells / seconds for way, seconds in times.items()}
    return (
        f"MergeAR 3 x 768, N = {cells}, K = {keep}, batch {batch}, guidance 2: compressed {rate['compressed']:.0f} tokens/s with "
        f"{held[True] / MEBIBYTE:.1f} MiB of cache, full {rate['full']:.0f} tokens/s with {held[False] / MEBIBYTE:.1f} MiB: "
        f"{times['full'] / times['compressed']:.2f} x as fast, {held[True] / held[False]:.2f} of the memory"
    )


def _repeating(batch: int, cells: int, keep: int) -> Tensor:
    """Codes (B, N) of `keep` clusters that spread as merged neighbours do: every cluster's cells lie close together."""
    generator = torch.Generator().manual_seed(0)
    side = round(cells**0.5)
    rows = []
    for _ in range(batch):
        seeds = torch.randperm(cells, generator=generator)[:keep]
        place = torch.arange(cells)
        distance = (place[:, None] // side - seeds // side).abs() + (
            place[:, None] % side - seeds % side
        ).abs()
        rows.append(torch.randperm(2**18, generator=generator)[:keep][distance.argmin(1)])
    return torch.stack(rows).to(device())


def _scripted(generator: Any, guidance: Any) -> Any:
    """Draws as always, and then takes the code of a script, which comes in the place of the random numbers."""
    from mergevq.generation.code_sampler import CodeSampler

    @dataclass(frozen=True)
    class Scripted(CodeSampler):
        def draw(
            self, hidden: Tensor, uniforms: Tensor, scales: Tensor, allowed: Tensor | None = None
        ) -> Tensor:
            super().draw(hidden, torch.zeros_like(uniforms), scales, allowed)
            return self.tokens.join(uniforms.long())

    return Scripted(generator.tokens, [(1.0, 0, 1.0)] * 2, guidance)


def generation_parallel() -> list[str]:
    """Random order, several codes at a time against one, with the published numbers of steps."""
    from mergevq.generation import GuidanceConfig

    lines = []
    for keep, steps in ((144, 64), (256, 88)):
        generator = _generator("random_order_b", keeps=[keep], transformer={"depth": 6})
        guidance = GuidanceConfig(scale=3.0, schedule="linear")
        ways = {str(n): _sample(generator, 4, keep=keep, steps=n, guidance=guidance) for n in (keep, steps)}
        times = interleaved(ways, rounds=3)
        lines.append(
            f"random order 6 x 768, K = {keep}, batch 4, guidance 1 to 3: {steps} steps {times[str(steps)]:.2f} s, "
            f"one code a step {times[str(keep)]:.2f} s: {times[str(keep)] / times[str(steps)]:.2f} x"
        )
    return lines


def generation_batch() -> list[str]:
    """Tokens per second as the batch grows, and the share of the memory's bandwidth that a decode step reaches."""
    generator = _generator("raster_b", grid_tokens=64)
    batches = (1, 4, 16)
    times = interleaved({str(n): _sample(generator, n) for n in batches}, rounds=3)
    weights = _weight_bytes(generator)
    rate = _copy_rate()
    lines = []
    for n in batches:
        step = times[str(n)] / 64
        cache = (
            generator.transformer.cache(n, 64, generator.classes.weight).num_bytes / 2
        )  # half full on average
        lines.append(
            f"raster {LABEL}, N = 64, batch {n}: {n / step:.0f} tokens/s, {step * 1e3:.1f} ms a step; {(weights + cache) / 1e6:.0f} MB "
            f"read in a step: {(weights + cache) / step / rate:.0%} of the measured copy rate of {rate / 1e9:.1f} GB/s"
        )
    return lines


def _copy_rate() -> float:
    """Bytes per second read and written by a copy of 256 MiB."""
    source = torch.zeros(64 * MEBIBYTE, device=device())
    target = torch.empty_like(source)
    synchronise()
    seconds = interleaved({"copy": lambda: target.copy_(source)}, rounds=5)["copy"]
    return 2 * source.numel() * source.element_size() / seconds


MEASUREMENTS = {
    f.__name__: f
    for f in (
        generation_target,
        generation_graphs,
        generation_cache,
        generation_mergear,
        generation_parallel,
        generation_batch,
    )
}
