"""The cells of `generability.py`: a tokenizer; its reconstructions, its AR probe and a trained generator at one kept count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import mergevq
from mergevq.ema import Ema
from mergevq.generation import Generator, RandomOrderConfig, TransformerConfig, sample
from mergevq.generation.config import GeneratorTrainingConfig
from mergevq.keep import ListedKeepConfig
from mergevq.metrics import CodeUsage, FeatureStatistics, Psnr, extractor, frechet_distance
from mergevq.metrics.ar_probe import ArProbeConfig, code_bits, fit_ar_probe, sample_ar_probe
from mergevq.metrics.features import RandomFeaturesConfig
from mergevq.metrics.perturbed import (
    mean_distance,
    merged_cells,
    perturbed_distances,
    perturbed_statistics,
)
from mergevq.perturbation import published_grid
from mergevq.rng import seeded_permutation, step_seed
from mergevq.schedules import CosineScheduleConfig, scale
from mergevq.tokenizer import Encoded, MergeVQ
from mergevq.training.generator import GeneratorTraining
from mergevq_platform.procedural.shapes import render
from small_tokenizer import BITS, ENTROPY_WEIGHT, device, train_tokenizer, unit

PASS = 500  # images at once, in measurements
SIZE, CLASSES, GRID_TOKENS = 32, 12, 64  # of the procedural shapes, and of the demo's tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerVariant:
    """What a tokenizer of the study has that the others have not."""

    bits: int = BITS
    entropy_weight: float = ENTROPY_WEIGHT
    counts: tuple[int, ...] = (9, 16, 25, 36, 49, 64, 64, 64)  # the demo's
    aligned: bool = False  # by self-distillation: without a teacher and without labels


VARIANTS = {
    "plain": TokenizerVariant(),
    "aligned": TokenizerVariant(aligned=True),
    "ten_bits": TokenizerVariant(bits=10),
    "no_entropy": TokenizerVariant(entropy_weight=0.0),
    "many_kept": TokenizerVariant(counts=(49, 64)),
}


@dataclass(frozen=True, kw_only=True)
class StudyProtocol:
    """All that decides the numbers of the study beside tokenizer, kept count and seed."""

    train_images: int = 6000
    images: int = 1000  # of validation, and sampled
    tokenizer_steps: int = 400
    tokenizer_batch: int = 64
    generator_steps: int = 500
    generator_batch: int = 64
    depth: int = 4  # of the generator, whose width and heads follow
    width: int = 192
    heads: int = 6
    learning_rate: float = 1.5e-3


class Shapes(NamedTuple):
    """Images (n, 3, S, S) uint8 of both splits and training labels (n,) int64, on the device."""

    train: Tensor
    train_labels: Tensor
    val: Tensor


@lru_cache(maxsize=1)
def shapes(protocol: StudyProtocol) -> Shapes:
    """The procedural shapes of `mergevq data shapes`, in memory."""
    train, labels = render(np.arange(protocol.train_images), "train", SIZE)
    val, _ = render(np.arange(protocol.images), "val", SIZE)
    pixels = (torch.from_numpy(part).permute(0, 3, 1, 2).contiguous().to(device()) for part in (train, val))
    first, second = pixels
    return Shapes(first, torch.from_numpy(labels).to(device()), second)


def train_variant(folder: Path, *, name: str, protocol: StudyProtocol) -> dict[str, Any]:
    """Train a tokenizer into the folder."""
    variant = VARIANTS[name]
    alignment = {"kind": "self", "prototypes": 256, "weight": 0.5} if variant.aligned else {"kind": "none"}
    tokenizer = train_tokenizer(
        shapes(protocol).train,
        keep=ListedKeepConfig(counts=variant.counts),
        losses={"entropy": {"weight": variant.entropy_weight}, "alignment": alignment},
        steps=protocol.tokenizer_steps,
        batch=protocol.tokenizer_batch,
        seed=0,
        model={"quantizer": {"bits": variant.bits}},
    )
    mergevq.save(tokenizer, folder / f"tokenizer_{name}")
    return {"tokenizer": name}


@torch.no_grad()
def measure(folder: Path, *, name: str, keep: int, protocol: StudyProtocol) -> dict[str, Any]:
    """Reconstructions of the validation images: with the true source, a recovered one, and perturbed codes."""
    tokenizer, network = _tokenizer(folder, name), extractor(RandomFeaturesConfig()).to(device())
    real, true, recovered = FeatureStatistics(), FeatureStatistics(), FeatureStatistics()
    psnr, usage, perturbed, first = Psnr(), CodeUsage(tokenizer.config.quantizer.vocabulary), [], 0
    for images, encoded in _encoded(tokenizer, shapes(protocol).val, keep):
        decoded = tokenizer.decode(encoded)
        real.update(network(images))
        true.update(network(decoded))
        recovered.update(network(tokenizer.decode_indices(encoded.indices)))
        psnr.update(images, decoded)
        usage.update(encoded.indices)
        ids = range(first, first + len(images))
        grid = published_grid(tokenizer.config.quantizer.vocabulary)
        perturbed.append(perturbed_statistics(tokenizer, network, encoded, ids, grid))
        first += len(images)
    return {
        "tokenizer": name,
        "keep": keep,
        "rfd_random_v1": frechet_distance(real, true),
        "rfd_random_v1_recovered": frechet_distance(real, recovered),
        "prfd_random_v1": mean_distance(perturbed_distances(real, merged_cells(perturbed))),
        **psnr.compute(),
        **usage.compute(),
    }


def probe(
    folder: Path, *, name: str, keep: int, settings: ArProbeConfig, protocol: StudyProtocol
) -> dict[str, Any]:
    """The AR probe of a tokenizer's codes: bits of held-out images, and the distance of its samples."""
    tokenizer = _tokenizer(folder, name)
    bits = VARIANTS[name].bits
    fitted = fit_ar_probe(_codes(tokenizer, shapes(protocol).train, keep), bits=bits, settings=settings)
    held_out = _codes(tokenizer, shapes(protocol).val, keep)

    def codes(ids: Tensor) -> Tensor:
        return sample_ar_probe(fitted, ids, seed=settings.seed)

    return {
        "tokenizer": name,
        "keep": keep,
        "ar_probe_v1_bits": float(code_bits(fitted, held_out).mean()),
        "ar_probe_v1_gfd_random_v1": _generated_distance(tokenizer, codes, settings.samples, protocol),
    }


def generate(folder: Path, *, name: str, keep: int, seed: int, protocol: StudyProtocol) -> dict[str, Any]:
    """Train a class-conditional random-order generator on the codes, and measure its samples without guidance."""
    tokenizer = _tokenizer(folder, name)
    generator = train_generator(_codes(tokenizer, shapes(protocol).train, keep), name, keep, seed, protocol)

    def codes(ids: Tensor) -> Tensor:
        labels = (ids % CLASSES).to(device())
        return sample(
            generator, labels, keep=keep, sample_ids=ids, seed=seed, steps=max(1, keep // 2)
        ).indices

    return {
        "tokenizer": name,
        "keep": keep,
        "seed": seed,
        "gfd_random_v1": _generated_distance(tokenizer, codes, protocol.images, protocol),
    }


def train_generator(indices: Tensor, name: str, keep: int, seed: int, protocol: StudyProtocol) -> Generator:
    """The generator of a tokenizer's codes (R, K), its weights averaged."""
    bits, steps, batch = VARIANTS[name].bits, protocol.generator_steps, protocol.generator_batch
    shape = TransformerConfig(
        depth=protocol.depth,
        width=protocol.width,
        heads=protocol.heads,
        hidden=2 * protocol.width,
        dropout=0.0,
        token_dropout=0.0,
    )
    model = RandomOrderConfig(
        transformer=shape,
        classes=CLASSES,
        grid_tokens=GRID_TOKENS,
        keeps=(keep,),
        bits=bits,
        split=(bits // 2, bits - bits // 2),
        intra_depth=1,
    )
    torch.manual_seed(seed)
    training = GeneratorTraining(Generator(model), GeneratorTrainingConfig(label_smoothing=0.0))
    training.to(device()).train()
    phase, average = training.phases["generator"], Ema(training.model(), 0.98)
    groups = [
        {"params": group.parameters, "weight_decay": 0.05 if group.decays else 0.0}
        for group in training.parameter_groups("generator")
    ]
    optimizer = torch.optim.AdamW(groups, lr=protocol.learning_rate, betas=(0.9, 0.95), fused=True)
    schedule = CosineScheduleConfig(warmup_steps=steps // 10, final_fraction=0.05)
    labels, none = shapes(protocol).train_labels, torch.empty(0, device=device())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = protocol.learning_rate * scale(schedule, step, steps)
        epoch, number = divmod(step, len(indices) // batch)
        order = seeded_permutation(len(indices), seed, epoch)[number * batch : (number + 1) * batch]
        rows = torch.from_numpy(order).to(device())
        torch.manual_seed(step_seed(seed, step, 0))  # orders and hidden classes
        views = {"indices": indices[rows], "assignment": none, "label": labels[rows]}
        phase(views, {}, keep=keep, step=step).total.backward()
        torch.nn.utils.clip_grad_norm_(phase.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    averaged = average.averaged
    assert isinstance(averaged, Generator)
    return averaged


def _tokenizer(folder: Path, name: str) -> MergeVQ:
    return mergevq.load(folder / f"tokenizer_{name}").to(device())


def _encoded(tokenizer: MergeVQ, images: Tensor, keep: int) -> Iterator[tuple[Tensor, Encoded]]:
    for part in images.split(PASS):
        scaled = unit(part)
        yield scaled, tokenizer.encode(scaled, keep)


@torch.no_grad()
def _codes(tokenizer: MergeVQ, images: Tensor, keep: int) -> Tensor:
    return torch.cat([encoded.indices for _, encoded in _encoded(tokenizer, images, keep)])


@torch.no_grad()
def _generated_distance(
    tokenizer: MergeVQ, codes: Callable[[Tensor], Tensor], count: int, protocol: StudyProtocol
) -> float:
    """The Fréchet distance of `count` images of `codes(sample_ids)`, decoded with Source Recovery, from the validation images."""
    network = extractor(RandomFeaturesConfig()).to(device())
    real, generated = FeatureStatistics(), FeatureStatistics()
    for part in shapes(protocol).val.split(PASS):
        real.update(network(unit(part)))
    for ids in torch.arange(count).split(PASS):
        generated.update(network(tokenizer.decode_indices(codes(ids))))
    return frechet_distance(real, generated)
