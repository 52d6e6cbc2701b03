"""The cells of `table4.py`: the teachers, and one tokenizer trained and measured at one kept count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergevq.ema import Ema
from mergevq.keep import ListedKeepConfig
from mergevq.metrics import (
    FeatureStatistics,
    Psnr,
    distance_name,
    extractor,
    frechet_distance,
    knn_votes,
    linear_probe,
)
from mergevq.metrics.features import RandomFeaturesConfig
from mergevq.schedules import CosineScheduleConfig, scale
from mergevq.teachers.stand_in import StandInClassifier, StandInConfig, save_classifier
from mergevq.tokenizer import MergeVQ
from mergevq.training.classifier import ClassifierTraining
from mergevq_platform.procedural.shape_distances import CLASSES
from mergevq_platform.procedural.shapes import numbers_of, render
from small_tokenizer import device, train_tokenizer, unit, untrained_tokenizer

PASS = 500  # images at once, in measurements
SIZE = 32

# The images of the study show every second class. The others are a teacher's that has learned nothing of these.
SHOWN, OTHERS = CLASSES[1::2], CLASSES[0::2]

# What alignment knows of the labels that the probe is asked for, by setting.
SETTINGS = {
    "labels": "stand-in teacher that saw the labels, as the demo's",
    "other_classes": "stand-in teacher of six other classes: alignment has seen no label",
    "self": "self-distillation: no teacher, no label",
    "none": "no alignment: reconstruction alone",
}
TAUGHT = ("labels", "other_classes")  # settings with a teacher of their own


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All that decides the numbers of the study beside setting, count and seed."""

    train_images: int = 6000
    val_images: int = 3000
    steps: int = 400
    batch: int = 64
    teacher_steps: int = 400


class Images(NamedTuple):
    """Images (n, 3, S, S) uint8 and labels (n,) int64 of both splits, on one device."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor


@lru_cache(maxsize=1)
def shapes(protocol: Protocol) -> Images:
    """What `mergevq data shapes DIR --classes` with the classes of the study writes, in memory."""
    train = drawn(SHOWN, "train", protocol.train_images)
    return Images(*train, *drawn(SHOWN, "val", protocol.val_images))


def drawn(classes: Sequence[str], split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first images (count, 3, S, S) uint8 of a split that show these classes, and their labels in that order."""
    known = [CLASSES.index(name) for name in classes]
    pixels, labels = render(numbers_of(known, count, split), split, SIZE)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device())
    return images, torch.from_numpy(np.searchsorted(known, labels)).to(device())


def train_teacher(folder: Path, *, setting: str, protocol: Protocol) -> dict[str, Any]:
    """Train the stand-in teacher of a setting into `folder`; the probe of its features says what a student may learn from it."""
    data = shapes(protocol)
    own = SHOWN if setting == "labels" else OTHERS
    images, labels = drawn(own, "train", protocol.train_images)
    torch.manual_seed(0)
    training = ClassifierTraining(StandInClassifier(StandInConfig(classes=len(own)))).to(device())
    phase, average = training.phases["classifier"], Ema(training.model(), 0.99)
    optimizer = torch.optim.AdamW(training.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = CosineScheduleConfig(warmup_steps=protocol.teacher_steps // 10)
    order = torch.Generator().manual_seed(0)
    for step in range(protocol.teacher_steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * scale(schedule, step, protocol.teacher_steps)
        rows = torch.randint(len(images), (64,), generator=order).to(device())
        output = phase({"image": unit(images[rows]), "label": labels[rows]}, {}, keep=0, step=step)
        output.total.backward()
        torch.nn.utils.clip_grad_norm_(training.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
    network = average.averaged
    assert isinstance(network, StandInClassifier)
    save_classifier(network, folder / f"teacher_{setting}")

    with torch.no_grad():
        train, val = (
            torch.cat([network.features(unit(batch)) for batch in part.split(PASS)]).cpu()
            for part in (data.train, data.val)
        )
    return {"teacher": setting, "probe_top1_teacher": probe((train, val), data)}


def alignment(setting: str, folder: Path) -> dict[str, Any]:
    """The alignment term of a setting."""
    if setting == "none":
        return {"kind": "none"}
    if setting == "self":
        return {"kind": "self", "prototypes": 256, "weight": 0.5}
    return {"kind": "stand_in", "directory": str(folder / f"teacher_{setting}"), "weight": 1.5}


def train_and_measure(
    folder: Path, *, setting: str, count: int, seed: int, protocol: Protocol
) -> dict[str, Any]:
    """Train a tokenizer that keeps `count` tokens in every step, and measure it there; its probe with all tokens too."""
    data = shapes(protocol)
    untrained = probe(summaries(untrained_tokenizer(seed), data, count), data)
    tokenizer = train_tokenizer(
        data.train,
        keep=ListedKeepConfig(counts=(count,)),
        losses={"alignment": alignment(setting, folder)},
        steps=protocol.steps,
        batch=protocol.batch,
        seed=seed,
    )
    found = summaries(tokenizer, data, count)
    train_labels, val_labels = data.train_labels.cpu(), data.val_labels.cpu()
    return {
        "setting": setting,
        "count": count,
        "seed": seed,
        **reconstruction(tokenizer, data, count),
        "probe_top1_cls": probe(found, data),
        "probe_top1_cls_all_tokens": probe(summaries(tokenizer, data, tokenizer.grid_tokens), data),
        "probe_top1_untrained": untrained,
        "knn_top1_cls": knn_votes(found[0], train_labels, found[1], val_labels).result().top1,
        "protocol": {
            "alignment": SETTINGS[setting],
            "images": f"shapes ({', '.join(SHOWN)}), {SIZE} px",
            **asdict(protocol),
        },
    }


def reconstruction(tokenizer: MergeVQ, data: Images, count: int) -> dict[str, float]:
    """Fréchet distance and PSNR of a tokenizer's reconstructions, with the true source."""
    return fidelity(lambda images: tokenizer.decode(tokenizer.encode(images, count)), data)


def mean_colour(folder: Path, *, protocol: Protocol) -> dict[str, Any]:
    """The floor of reconstruction: each image as one colour, its own mean."""
    del folder
    data = shapes(protocol)
    return {
        "baseline": "mean_colour",
        **fidelity(lambda images: images.mean((2, 3), keepdim=True).expand_as(images), data),
    }


@torch.no_grad()
def fidelity(reconstructed: Callable[[Tensor], Tensor], data: Images) -> dict[str, float]:
    """Fréchet distance of random features and PSNR between the validation images and what stands for them."""
    network = extractor(RandomFeaturesConfig()).to(data.val.device)
    real, decoded, psnr = FeatureStatistics(), FeatureStatistics(), Psnr()
    for batch in data.val.split(PASS):
        images = unit(batch)
        output = reconstructed(images)
        real.update(network(images))
        decoded.update(network(output))
        psnr.update(images, output)
    return {distance_name(network, "reconstruction"): frechet_distance(real, decoded), **psnr.compute()}


@torch.no_grad()
def summaries(tokenizer: MergeVQ, data: Images, count: int) -> tuple[Tensor, Tensor]:
    """The summary tokens (n, D) float32 of both splits at a kept count, on the CPU.

    The fits of a probe are thousands of tiny steps, each of which would wait for a shared GPU.
    """
    train, val = (
        torch.cat([tokenizer.encode(unit(batch), count).summary.float() for batch in part.split(PASS)]).cpu()
        for part in (data.train, data.val)
    )
    return train, val


def probe(features: tuple[Tensor, Tensor], data: Images) -> float:
    """Top-1 of a linear probe, percent."""
    train, val = features
    return linear_probe(train, data.train_labels.cpu(), val, data.val_labels.cpu()).top1
