"""Linear probes trained by SGD, AdamW or LARS on cached features, one head per learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mergevq.config import config
from mergevq.metrics.labelled import checked, class_numbers, held_out_part, wilson_interval
from mergevq.number_types import Count, NonNegative, Positive, ProperFraction, WholeNumber
from mergevq.quantize import average_over_ranks
from mergevq.rng import seeded_permutation
from mergevq.schedules import CosineScheduleConfig, scale


@config
class SgdProbeConfig:
    """A recipe of a linear probe; the default is the paper's (appendix A.4)."""

    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    learning_rates: Annotated[tuple[Positive, ...], pydantic.Field(min_length=1)] = (
        1e-3,
    )  # of one head each
    rates_per_256: bool = False  # the rates are for batches of 256 images, and grow with the batch
    epochs: Count = 90
    batch: Count = 1024
    warmup_epochs: WholeNumber = 0  # then half a cosine to 0
    weight_decay: NonNegative = 0.0
    momentum: ProperFraction = 0.9  # of sgd and lars
    normalise: bool = True  # batch norm without parameters before the head

    def __post_init__(self) -> None:
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError(f"learning_rates {list(self.learning_rates)} names a rate twice")

    def rate(self, head: int) -> float:
        """The base rate of a head's optimizer."""
        return self.learning_rates[head] * (self.batch / 256 if self.rates_per_256 else 1)


# As published; "dinov2" is 12,500 steps, which are ten epochs of ImageNet.
PUBLISHED: dict[str, SgdProbeConfig] = {
    "mergevq": SgdProbeConfig(),
    "mae": SgdProbeConfig(
        optimizer="lars", learning_rates=(0.1,), rates_per_256=True, batch=16384, warmup_epochs=10
    ),
    "dinov2": SgdProbeConfig(
        optimizer="sgd",
        learning_rates=(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        rates_per_256=True,
        epochs=10,
        normalise=False,
    ),
}


class Standardise(nn.Module):
    """Batch norm without parameters, over all ranks: any number of workers sees the same statistics.

    Features that nothing trains need no gradient, so statistics are constants. Evaluation uses running averages.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int, *, momentum: float = 0.1, eps: float = 1e-6) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.mean, self.variance
        if self.training:
            # About the running mean, so that a large common offset costs no digits.
            moved = x.float() - self.mean
            shift, square = average_over_ranks(torch.stack([moved.mean(0), moved.square().mean(0)]), len(x))
            variance = (square - shift.square()).clamp(min=0)
            mean = self.mean + shift
            self.mean.lerp_(mean, self.momentum)
            self.variance.lerp_(variance, self.momentum)
        return (x.float() - mean) * (variance + self.eps).rsqrt()


class ProbeHeads(nn.Module):
    """Linear classifiers that share nothing but their input: features (B, D) to logits (H, B, classes), float32."""

    def __init__(self, dim: int, classes: int, heads: int, *, normalise: bool = True) -> None:
        super().__init__()
        self.classes, self.heads = classes, heads
        self.norm = Standardise(dim) if normalise else nn.Identity()
        first = torch.empty(classes, dim)
        nn.init.trunc_normal_(first, std=0.01)  # the same start for all: only their rates differ
        self.weights = nn.ParameterList(first.clone() for _ in range(heads))
        self.biases = nn.ParameterList(torch.zeros(classes) for _ in range(heads))

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            x = self.norm(features.detach().float())
            logits = F.linear(x, torch.cat(list(self.weights)), torch.cat(list(self.biases)))
        return logits.view(len(x), self.heads, self.classes).transpose(0, 1)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy (H,) float32 of each head's logits (H, B, classes) with labels (B,), -1 = no label.

        Their sum is what to run backward from: every head gets the gradient of its own loss. Scaled so that gradients
        averaged over the ranks with their batches as weights are those of the mean over all labelled images.
        """
        repeated = labels.repeat(self.heads)
        each = F.cross_entropy(logits.flatten(0, 1), repeated, ignore_index=-1, reduction="none")
        labelled = average_over_ranks((labels >= 0).float().mean(), len(labels))
        return each.view(self.heads, -1).sum(1) / (len(labels) * labelled).clamp(min=1e-6)


def heads_optimizer(heads: ProbeHeads, settings: SgdProbeConfig) -> torch.optim.Optimizer:
    """The recipe's optimizer, two groups per head, each with its `base_lr`; biases never decay."""
    groups = []
    for head, (weight, bias) in enumerate(zip(heads.weights, heads.biases, strict=True)):
        rate = settings.rate(head)
        decay = settings.weight_decay
        groups.append(
            {"params": [weight], "lr": rate, "base_lr": rate, "weight_decay": decay, "always_adapt": True}
        )
        groups.append(
            {"params": [bias], "lr": rate, "base_lr": rate, "weight_decay": 0.0, "always_adapt": False}
        )
    match settings.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups)
        case "sgd":
            return torch.optim.SGD(groups, lr=1.0, momentum=settings.momentum)
        case (
            "lars"
        ):  # timm adapts the rate of groups that `always_adapt`, as MAE does for weights and not for biases
            from timm.optim.lars import Lars

            return Lars(groups, lr=1.0, momentum=settings.momentum)


def set_rates(
    optimizer: torch.optim.Optimizer, settings: SgdProbeConfig, step: int, steps_per_epoch: int
) -> None:
    """The learning rates of optimizer step `step`, counted from 0: a warm-up, then half a cosine, for every head."""
    schedule = CosineScheduleConfig(warmup_steps=settings.warmup_epochs * steps_per_epoch)
    factor = scale(schedule, step, settings.epochs * steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class SgdProbeResult(NamedTuple):
    """Top-1 accuracy of the probe in percent, with its interval and the chosen learning rate."""

    top1: float  # percent of the test images
    interval: tuple[float, float]  # 95% Wilson interval of `top1`, percent
    learning_rate: float  # of the head that answered, as the recipe gives it
    held_out_top1: dict[
        float, float
    ]  # by rate, on the held-out part of train that chose among them; empty for one
    train_images: int
    classes: int


def sgd_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    settings: SgdProbeConfig,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> SgdProbeResult:
    """Train linear heads on cached features (B, D) and labels (B,) of one set, and score the best once on the other.

    With several learning rates all heads are trained on four fifths of train, the best on the rest is chosen (the
    smallest rate among equals), and one head of that rate is trained on all of train. Order and start are functions
    of the seed. Works on the features' device; `progress(step, steps)` is called after every epoch. Raises
    `InputError` as `linear_probe` does, and for training that diverged.
    """
    train_x, train_y, test_x, test_y = checked(train_x, train_y, test_x, test_y)
    classes, train_y = train_y.unique(return_inverse=True)
    test_y = class_numbers(classes, test_y)
    held_out_top1: dict[float, float] = {}
    rate = settings.learning_rates[0]
    if len(settings.learning_rates) > 1:
        rates = tuple(sorted(settings.learning_rates))
        every = dataclasses.replace(settings, learning_rates=rates)
        held_out = held_out_part(train_y)
        heads = _trained(train_x[~held_out], train_y[~held_out], len(classes), every, seed, progress)
        scores = _top1(heads, train_x[held_out], train_y[held_out])
        held_out_top1 = dict(zip(rates, scores, strict=True))
        rate = rates[int(np.argmax(scores))]
    chosen = dataclasses.replace(settings, learning_rates=(rate,))
    heads = _trained(train_x, train_y, len(classes), chosen, seed, progress)
    top1 = _top1(heads, test_x, test_y)[0]
    interval = wilson_interval(top1, len(test_y))
    return SgdProbeResult(top1, interval, rate, held_out_top1, len(train_y), len(classes))


def _trained(
    x: Tensor,
    y: Tensor,
    num_classes: int,
    settings: SgdProbeConfig,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> ProbeHeads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = ProbeHeads(
            x.shape[1], num_classes, len(settings.learning_rates), normalise=settings.normalise
        ).to(x.device)
    batch = min(settings.batch, len(x))
    steps_per_epoch = len(x) // batch
    optimizer = heads_optimizer(heads, settings)
    for epoch in range(settings.epochs):
        order = torch.from_numpy(seeded_permutation(len(x), seed, epoch)).to(x.device)
        for index in range(steps_per_epoch):
            set_rates(optimizer, settings, epoch * steps_per_epoch + index, steps_per_epoch)
            rows = order[index * batch : (index + 1) * batch]
            with torch.enable_grad():
                heads.losses(heads(x[rows]), y[rows]).sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress((epoch + 1) * steps_per_epoch, settings.epochs * steps_per_epoch)
    return heads.eval()


@torch.no_grad()
def _top1(heads: ProbeHeads, x: Tensor, y: Tensor) -> list[float]:
    right = torch.zeros(heads.heads, dtype=torch.int64, device=x.device)
    for part, labels in zip(x.split(4096), y.split(4096), strict=True):
        right += (heads(part).argmax(2) == labels).sum(1)
    return (100 * right.double() / len(y)).tolist()
