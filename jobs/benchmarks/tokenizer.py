"""The model library: merging saves work, quantizing saves memory, a training step is fast."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import MEBIBYTE, device, in_fresh_process, interleaved, peak_bytes, process_peak_bytes
from mergevq.training.protocol import Training


def encoder() -> list[str]:
    """Encoder time and counted FLOPs at keep = N, N/2, N/4: merging must save work, not mask it."""
    from torch.utils.flop_counter import FlopCounterMode

    import mergevq

    tokenizer = mergevq.create("gr_256_d32").to(device()).eval()
    batch = 32 if torch.cuda.is_available() else 1  # enough that kernels and not their launches are timed
    images = torch.rand(batch, 3, 256, 256, device=device()) * 2 - 1
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
        f"encoder gr_256_d32, {batch} x 256 px, keep {keep}: {times[str(keep)] * 1e3:.0f} ms "
        f"({times[str(keep)] / base_time:.2f} of keep N), "
        f"{flops[keep] / 1e9:.1f} GFLOP ({flops[keep] / base_flops:.2f})"
        for keep in flops
    ]


def ragged() -> list[str]:
    """Encoding time of a count for each image, against one count for all at the same mean: two, five and nine counts."""
    import mergevq

    preset, batches = ("gr_256_d64", (16, 64)) if torch.cuda.is_available() else ("gr_128_d32", (18,))
    tokenizer = mergevq.create(preset).to(device()).eval()
    mean = tokenizer.grid_tokens * 9 // 16
    spreads = {
        name: [
            mean + round(0.3 * mean * step / steps)
            for step in range(-steps, steps + 1, 2 * steps // (counts - 1))
        ]
        for name, counts, steps in (("two", 2, 1), ("five", 5, 2), ("nine", 9, 4))
    }
    lines = []
    for batch in batches:
        images = torch.rand(batch, 3, *[tokenizer.config.image_size] * 2, device=device()) * 2 - 1
        ways: dict[str, Callable[[], object]] = {"one": lambda images=images: tokenizer.encode(images, mean)}
        for name, counts in spreads.items():
            each = [counts[i % len(counts)] for i in range(batch)]
            ways[name] = lambda images=images, each=each: tokenizer.encode(images, each)
        with torch.inference_mode():
            times = interleaved(ways, rounds=5)
        lines += [
            f"encode {preset}, {batch} x {tokenizer.config.image_size} px, {name} counts of mean {mean}: "
            f"{seconds * 1e3:.0f} ms ({seconds / times['one']:.2f} of one count)"
            for name, seconds in times.items()
        ]
    return lines


def _lfq_work(tokens: int, bits: int) -> Callable[[], None]:
    from mergevq.quantize import LFQ, LFQConfig

    quantizer = LFQ(LFQConfig(bits=bits)).to(device())
    latents = (torch.randn(1, tokens, bits, device=device()) * 0.05).requires_grad_()

    def work() -> None:
        losses = quantizer.losses(latents)
        (losses["sample_entropy"] - losses["codebook_entropy"]).backward()
        latents.grad = None

    return work


def _lfq_peak(tokens: int, bits: int) -> int:
    _lfq_work(16, bits)()  # libraries' own memory comes first
    return peak_bytes(_lfq_work(tokens, bits))


def lfq() -> list[str]:
    """LFQ's exact entropy: memory at 4,096 tokens of 2^18 codes, and time against the materialised form where that fits."""

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

    extra = in_fresh_process(_lfq_peak, 4096, 18)
    tokens, bits = (2048 if torch.cuda.is_available() else 128), 18
    times = interleaved(
        {"ours": _lfq_work(tokens, bits), "materialised": materialised(tokens, bits)}, rounds=3
    )
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
        f"{times['dense'] / times['gather']:.1f} x; source kept as {cells * 8} bytes an image, not {cells * kept * 4}"
    ]


def step() -> list[str]:
    """A whole stage-1 step: tokenizer and discriminator forward, all losses, both updates, 2^18 codes; time, and peak
    memory of a fresh process; also with norms recomputed, and with the view that alignment encodes besides."""
    official = "the official code on 2 cores"
    return [
        *_steps("gr_128_d32", 4, 36, f"target: 4.5 s / 1.8 GB; {official}: 10.1-11.4 s / 5.5 GB"),
        *_steps("gr_256_d32", 2, 144, f"target: 10 s / 2.5 GB; {official}: 23.3-25.8 s / 7.4 GB"),
    ]


def _steps(preset: str, batch: int, keep: int, target: str) -> list[str]:
    lines = []
    for way in ("plain", "recompute", "aligned"):
        seconds, peak, states = in_fresh_process(_timed_step, preset, batch, keep, way)
        lines.append(
            f"stage-1 step {preset}, batch {batch}, keep {keep}, {way}: {seconds:.2f} s, {peak / 1e9:.2f} GB at the peak, "
            f"of which weights, gradients and moments {states / 1e9:.2f} GB ({target})"
        )
    return lines


def _timed_step(preset: str, batch: int, keep: int, way: str) -> tuple[float, int, int]:
    import mergevq
    from mergevq.training.tokenizer import build_training

    torch.manual_seed(0)
    tokenizer = mergevq.create(preset)
    tokenizer.recompute(way == "recompute")
    size = tokenizer.config.image_size
    alignment = {"kind": "supervised", "classes": 1000} if way == "aligned" else {"kind": "none"}
    losses = {"alignment": alignment, "perceptual": {"kind": "none"}}
    training = build_training(losses, tokenizer).to(device())
    one_step = _whole_step(training, _images(batch, size), keep)
    seconds = interleaved({"step": one_step}, rounds=3)["step"]
    return seconds, process_peak_bytes(), 4 * sum(p.numel() * p.element_size() for p in training.parameters())


def _images(batch: int, size: int) -> dict[str, Tensor]:
    return {
        "image": torch.rand(batch, 3, size, size, device=device()) * 2 - 1,
        "student": torch.rand(batch, 3, size, size, device=device()) * 2 - 1,
        "label": torch.arange(batch, device=device()),
    }


def _whole_step(training: Training, images: dict[str, Tensor], keep: int) -> Callable[[], None]:
    """A step with both updates, at a time when the adversarial terms have begun."""
    optimizers = {
        name: torch.optim.AdamW(
            [p for p in phase.parameters() if p.requires_grad], lr=1e-4, betas=(0.5, 0.9), fused=True
        )
        for name, phase in training.phases.items()
    }

    def one_step() -> None:
        carry: dict[str, Tensor] = {}
        for name, phase in training.phases.items():
            output = phase(images, carry, keep=keep, step=10**6)
            output.total.backward()
            carry = output.carry
            optimizers[name].step()
            optimizers[name].zero_grad(set_to_none=True)

    return one_step


def precision() -> list[str]:
    """Images per second of a published tokenizer's training step in float32 and bfloat16."""
    return _training_rates("float32", "bfloat16")


def compiled() -> list[str]:
    """The same with its transformer blocks compiled, whose first step takes minutes."""
    return _training_rates("bfloat16", "compiled")


def _training_rates(*ways: str) -> list[str]:
    if not torch.cuda.is_available():
        return [f"training step, {' and '.join(ways)}: needs a GPU"]
    preset, batch, keep = "gr_256_d64", 16, 144
    rates, peaks, first = {}, {}, {}
    for way in ways:
        rates[way], peaks[way], first[way] = in_fresh_process(_training_rate, preset, batch, keep, way)
    return [
        f"training step {preset}, batch {batch}, keep {keep}, {way}: {rates[way]:.0f} images/s "
        f"({rates[way] / rates[ways[0]]:.2f} x), {peaks[way] / 1e9:.1f} GB at the peak; first step {first[way]:.0f} s"
        for way in ways
    ]


def _training_rate(preset: str, batch: int, keep: int, way: str) -> tuple[float, int, float]:
    """(images per second, bytes at the peak, seconds of the first step); float32's products are tf32, as in training."""
    import mergevq
    from mergevq.training.tokenizer import build_training

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    tokenizer = mergevq.create(preset)
    size = tokenizer.config.image_size
    losses = {"alignment": {"kind": "supervised", "classes": 1000}, "perceptual": {"kind": "none"}}
    training = build_training(losses, tokenizer).to(device()).to(memory_format=torch.channels_last)
    if way == "compiled":
        training.model().compile()
    work = _whole_step(training, _images(batch, size), keep)
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=way != "float32")

    def one_step() -> None:
        with autocast:
            work()

    began = time.perf_counter()
    one_step()
    torch.cuda.synchronize()
    first = time.perf_counter() - began
    seconds = interleaved({"step": one_step}, rounds=9)["step"]
    return batch / seconds, torch.cuda.max_memory_allocated(), first


MEASUREMENTS = {f.__name__: f for f in (encoder, ragged, lfq, unmerge, step, precision, compiled)}
