"""Training of the demo's tokenizer on images in memory, for studies: the model library alone, without Ray and Parquet.

The recipe is that of `jobs/recipes/demo.yaml` without its adversarial term, which starts after three quarters of the demo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mergevq
from mergevq.ema import Ema
from mergevq.keep import KeepDistributionConfig, draw
from mergevq.rng import Stream, permutation, step_seed
from mergevq.schedules import CosineScheduleConfig, scale
from mergevq.tokenizer import MergeVQ
from mergevq.training.tokenizer import build_training

BITS, ENTROPY_WEIGHT = 18, 0.02
LOSSES: dict[str, Any] = {
    "reconstruction": {"kind": "l1_l2"},
    "commitment_weight": 0.05,
    "entropy": {"weight": ENTROPY_WEIGHT},
    "recovery": {"weight": 0.1},
    "adversarial": {"kind": "none"},
}
MODEL: dict[str, Any] = {"quantizer": {"bits": BITS}}
LEARNING_RATE, EMA_DECAY = 2e-3, 0.98
STUDENT_AREA = (0.9, 1.0)  # of the image, that the student's crop covers; flipped half the time


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def unit(images: Tensor) -> Tensor:
    """Images uint8 as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def untrained_tokenizer(seed: int, model: Mapping[str, Any] = MODEL) -> MergeVQ:
    """The demo's tokenizer before its first step, on the device, in evaluation mode: seed and model alone decide the weights."""
    torch.manual_seed(seed)
    return mergevq.create("tiny_gr_32", model).to(device()).eval()


def train_tokenizer(
    images: Tensor,
    *,
    keep: KeepDistributionConfig,
    losses: Mapping[str, Any],
    steps: int,
    batch: int,
    seed: int,
    labels: Tensor | None = None,
    student_area: tuple[float, float] = STUDENT_AREA,
    model: Mapping[str, Any] = MODEL,
    learning_rate: float = LEARNING_RATE,
    measure: Callable[[int, MergeVQ], None] = lambda step, tokenizer: None,
) -> MergeVQ:
    """Train on images (n, 3, 32, 32) uint8; returns the averaged weights in evaluation mode.

    `losses` is laid over the demo's. Each step takes the images, crops and kept count of (seed, step) whatever else is chosen.
    `measure(steps, tokenizer)` is called after every step with the averaged weights, and must draw no random numbers of PyTorch.
    """
    losses = {**LOSSES, **losses}
    training = build_training(losses, untrained_tokenizer(seed, model), seed=seed)
    training.to(device()).train()
    grid_tokens = training.model().grid_tokens
    groups = training.parameter_groups("tokenizer")
    optimizer = torch.optim.AdamW(
        [{"params": group.parameters, "weight_decay": 0.0} for group in groups],
        lr=learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    schedule = CosineScheduleConfig(warmup_steps=steps // 10)
    average = Ema(training.model(), EMA_DECAY)
    phase, tokenizer = training.phases["tokenizer"], average.averaged
    assert isinstance(tokenizer, MergeVQ)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale(schedule, step, steps)
        views = _views(images, labels, step, batch, seed, student_area)
        output = phase(views, {}, keep=draw(keep, grid_tokens, seed=seed, step=step), step=step)
        output.total.backward()
        torch.nn.utils.clip_grad_norm_(phase.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        training.after_step(step)
        average.update()
        measure(step + 1, tokenizer)
    return tokenizer


def _views(
    images: Tensor,
    labels: Tensor | None,
    step: int,
    batch: int,
    seed: int,
    student_area: tuple[float, float],
) -> dict[str, Tensor]:
    """The views of a step: the images for reconstruction and teacher, and the student's crops, in [-1, 1]; their labels."""
    epoch, start = divmod(step * batch, len(images) - len(images) % batch)
    order = permutation(len(images), seed, Stream.WINDOW_ORDER, epoch)[start : start + batch]
    rows = torch.from_numpy(order).to(images.device)
    chosen = unit(images[rows])
    drawn = torch.rand(batch, 4, generator=torch.Generator().manual_seed(step_seed(seed, step, 0)))
    low, high = student_area
    side = (low + (high - low) * drawn[:, 0]).sqrt()
    boxes = torch.zeros(batch, 2, 3)
    boxes[:, 0, 0] = torch.where(drawn[:, 1] < 0.5, -side, side)
    boxes[:, 1, 1] = side
    boxes[:, :, 2] = (2 * drawn[:, 2:] - 1) * (1 - side)[:, None]
    grid = F.affine_grid(boxes.to(images.device), list(chosen.shape), align_corners=False)
    student = F.grid_sample(chosen, grid, padding_mode="border", align_corners=False)
    known = {} if labels is None else {"label": labels[rows]}
    return {"image": chosen, "student": student, "teacher": chosen, **known}
