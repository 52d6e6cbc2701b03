"""AR probe: how well a small autoregressive transformer of fixed size learns a tokenizer's codes (GigaTok, arXiv 2504.08736).

Reconstruction does not tell what a code is worth to a generator. The probe is a generator of fixed size, steps and data: its
likelihood of held-out codes and the Fréchet distance of its samples compare tokenizers. GigaTok trains 111M parameters; this
one is small enough for a CPU. It sees the kept tokens' codes in canonical order and nothing else: no class, so that a number
means the same on any image set, and no source, which is Source Recovery's to find when samples are decoded.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq import schedules
from mergevq.config import config
from mergevq.errors import InputError
from mergevq.generation.config import RasterConfig, TransformerConfig
from mergevq.generation.model import Generator
from mergevq.generation.sampling import sample
from mergevq.number_types import Count, Fraction, NonNegative, Positive, WholeNumber
from mergevq.ragged import NO_TOKEN, token_counts
from mergevq.rng import sample_uniforms, seeded_permutation
from mergevq.training.protocol import decayed_and_not

COUNTS = 2  # stream of a sample's random numbers; 0 and 1 are those of `sample`
ROWS = 250  # images whose likelihood is taken, or that are sampled, at once


@config
class ArProbeConfig:
    """Size, training and data of an AR probe. All of it decides the numbers: they compare only under one name of `AR_PROBES`."""

    depth: Count
    width: Count
    heads: Count
    hidden: Count  # of the SwiGLU
    intra_depth: Count  # layers over one code's sub-tokens
    most_sub_bits: Count  # a code is split into as few equal sub-tokens as have at most so many bits
    steps: Count
    batch: Count
    learning_rate: Positive
    betas: tuple[Fraction, Fraction]
    weight_decay: NonNegative
    clip_norm: Positive
    warmup_steps: WholeNumber
    final_fraction: Fraction  # of the learning rate, at the end of its cosine
    train_images: Count  # the first ones of the training split, at most
    samples: Count  # images that its Fréchet distance is of
    seed: WholeNumber

    def split(self, bits: int) -> tuple[int, ...]:
        """The bits of each sub-token of a code, lowest bits first: (9, 9) for 18 bits at most 9."""
        parts = math.ceil(bits / self.most_sub_bits)
        return tuple(bits // parts + (part < bits % parts) for part in range(parts))


# Frozen: numbers of before must compare with those of today. Another setting is another name.
AR_PROBES = {
    "ar_probe_v1": ArProbeConfig(
        depth=3,
        width=128,
        heads=4,
        hidden=256,
        intra_depth=1,
        most_sub_bits=9,
        steps=300,
        batch=64,
        learning_rate=3e-3,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        clip_norm=1.0,
        warmup_steps=30,
        final_fraction=0.05,
        train_images=6000,
        samples=1000,
        seed=0,
    )
}


def untrained_ar_probe(settings: ArProbeConfig, *, bits: int, tokens: int) -> Generator:
    """The probe's transformer over sequences of up to `tokens` codes of `bits` bits, on the CPU; a function of the seed."""
    shape = TransformerConfig(
        depth=settings.depth,
        width=settings.width,
        heads=settings.heads,
        hidden=settings.hidden,
        dropout=0.0,
        token_dropout=0.0,
    )
    # The kept tokens are a sequence: their rank is their only position, whatever the count.
    model = RasterConfig(
        transformer=shape,
        classes=1,
        grid_tokens=tokens,
        grid=(1, tokens),
        bits=bits,
        split=settings.split(bits),
        intra_depth=settings.intra_depth,
        label_drop=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return Generator(model)


def fit_ar_probe(indices: Tensor, *, bits: int, settings: ArProbeConfig) -> Generator:
    """Train the probe on codes (R, K) int64 in canonical order, padded with -1 where images keep fewer; on their device.

    Only the first `settings.train_images` rows are used. The order of the data is a function of (seed, epoch). Raises
    `InputError` for fewer images than a batch.
    """
    if len(indices) < settings.batch:
        raise InputError(
            f"an AR probe learns from batches of {settings.batch} images, here are {len(indices)}: give more"
        )
    # Measured models run without gradients: here there are some.
    with torch.inference_mode(False), torch.enable_grad():
        rows = indices[: settings.train_images].clone()
        probe = untrained_ar_probe(settings, bits=bits, tokens=rows.shape[1]).to(rows.device).train()
        groups = [
            {"params": group.parameters, "weight_decay": settings.weight_decay if group.decays else 0.0}
            for group in decayed_and_not(probe.parameters())
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, fused=True)
        schedule = schedules.CosineScheduleConfig(
            warmup_steps=settings.warmup_steps, final_fraction=settings.final_fraction
        )
        epoch_steps = len(rows) // settings.batch
        for step in range(settings.steps):
            epoch, number = divmod(step, epoch_steps)
            if number == 0:
                order = torch.from_numpy(seeded_permutation(len(rows), settings.seed, epoch)).to(rows.device)
            batch = rows[order[number * settings.batch : (number + 1) * settings.batch]]
            loss = code_nats(probe, batch).sum() / token_counts(batch).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(probe.parameters(), settings.clip_norm, foreach=True)
            rate = settings.learning_rate * schedules.scale(schedule, step, settings.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return probe.requires_grad_(False).eval()


def code_nats(probe: Generator, indices: Tensor) -> Tensor:
    """The negative log-likelihood (B,) in nats of the codes (B, K) of each image, float64; what is padded with -1 has none.

    Where images keep different counts, the counts themselves are given: they cost nothing.
    """
    labels = torch.full((len(indices),), -1, device=indices.device)
    absent = indices == NO_TOKEN
    # What is padded stands behind an image's last code, and no code sees what is behind it.
    prediction = probe(indices.masked_fill(absent, 0), None, labels)
    parts = probe.tokens.split(prediction.targets)
    total = torch.zeros(len(indices), dtype=torch.float64, device=indices.device)
    for j, logits in enumerate(prediction.logits):
        nats = F.cross_entropy(logits.flatten(0, 1).float(), parts[..., j].flatten(), reduction="none")
        total = total + nats.view_as(indices).masked_fill(absent, 0.0).double().sum(1)
    return total


@torch.no_grad()
def code_bits(probe: Generator, indices: Tensor) -> Tensor:
    """The bits (R,) float64 that the probe needs for the codes (R, K) of each image: see `code_nats`."""
    return torch.cat([code_nats(probe, rows) for rows in indices.split(ROWS)]) / math.log(2)


def sample_ar_probe(
    probe: Generator, sample_ids: Tensor, *, seed: int, counts: Tensor | None = None
) -> Tensor:
    """Codes (B, K) of samples: sample i is a function of (seed, sample_ids[i]).

    `counts` (R,): the kept counts of the training images, from which each sample draws its own; its codes are then padded with
    -1. None: all samples keep K.
    """
    device = probe.classes.weight.device
    labels = torch.full((len(sample_ids),), -1, device=device)
    indices = sample(probe, labels, sample_ids=sample_ids, seed=seed).indices
    if counts is None:
        return indices
    drawn = sample_uniforms(seed, sample_ids, 1, stream=COUNTS)[:, 0]
    kept = counts.cpu()[(drawn * len(counts)).long()].to(device)
    return indices.masked_fill(torch.arange(indices.shape[1], device=device) >= kept[:, None], NO_TOKEN)
