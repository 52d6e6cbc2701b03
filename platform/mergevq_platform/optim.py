"""Optimizers: one for each phase, its learning rate, clipping, precision and loss scale."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mergevq import schedules
from mergevq.training.protocol import Training
from mergevq_platform.adamw import FusedAdamW
from mergevq_platform.recipe import OptimizerConfig, Recipe
from mergevq_platform.storage.checkpoints import TrainingState

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def make_optimizers(recipe: Recipe, training: Training) -> dict[str, torch.optim.Optimizer]:
    """One AdamW per phase, with the groups that its training makes."""
    optimizers: dict[str, torch.optim.Optimizer] = {}
    for name in training.phases:
        config = optimizer_config(recipe, name)
        groups = [
            {
                "params": group.parameters,
                "weight_decay": config.weight_decay if group.decays else 0.0,
                "rate_factor": group.rate_factor,
            }
            for group in training.parameter_groups(name)
        ]
        optimizers[name] = FusedAdamW(groups, lr=config.learning_rate, betas=config.betas)
    return optimizers


def optimizer_config(recipe: Recipe, phase: str) -> OptimizerConfig:
    """The settings of a phase's optimizer."""
    return (
        recipe.discriminator_optimizer or recipe.optimizer if phase == "discriminator" else recipe.optimizer
    )


def set_learning_rates(
    recipe: Recipe,
    training: Training,
    optimizers: dict[str, torch.optim.Optimizer],
    step: int,
    total_steps: int,
) -> None:
    """Learning rates as a pure function of the step; 0 for a phase that rests, which weight decay would move."""
    for name, optimizer in optimizers.items():
        config = optimizer_config(recipe, name)
        rate = config.learning_rate * schedules.scale(config.schedule, step, total_steps)
        if training.rests(name, step):
            rate = 0.0
        for group in optimizer.param_groups:
            group["lr"] = rate * group["rate_factor"]


def update(
    recipe: Recipe, training: Training, state: TrainingState, *, keep_gradients: bool = False
) -> dict[str, Tensor]:
    """Clip, step, clear; returns the gradient norm of each phase. `keep_gradients`: as zeros, at their addresses."""
    norms: dict[str, Tensor] = {}
    for name, phase in training.phases.items():
        optimizer = state.optimizers[name]
        parameters = [p for p in phase.parameters() if p.requires_grad]
        if state.scaler:
            state.scaler.unscale_(optimizer)
        clip = optimizer_config(recipe, name).clip_norm
        norm = nn.utils.clip_grad_norm_(parameters, clip if clip is not None else float("inf"), foreach=True)
        norms[f"{name}_gradient_norm"] = norm
        if state.scaler:
            state.scaler.step(optimizer)
        elif recipe.on_nan == "stop" or bool(norm.isfinite()):  # "skip" reads the norm on the host, each step
            optimizer.step()
        optimizer.zero_grad(set_to_none=not keep_gradients)
    if state.scaler:
        state.scaler.update()
    return norms


def prefer_speed(device: torch.device) -> None:
    """On a GPU float32 products in tf32, and the fastest of cuDNN's convolutions for each shape, tried at its first use.

    Not the latter where PyTorch is asked for deterministic algorithms: which one is fastest differs from run to run. On a CPU
    memory that is freed stays with the process: a step asks for the same again.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
    elif device.type == "cpu":
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    # By default glibc gives large blocks back to the system, and each next one is filled with zeros page by page: a tenth of a step.
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return  # another C library
    m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, -1)  # never


def layout(recipe: Recipe) -> torch.memory_format:
    """The memory format of a training's maps and of its convolutions' weights."""
    return torch.channels_last if recipe.channels_last else torch.preserve_format


def autocast(recipe: Recipe, device: torch.device) -> Callable[[], AbstractContextManager]:
    """The context of every forward pass: mixed precision as the recipe says, nothing for float32."""
    if recipe.precision == "float32":
        return nullcontext
    return lambda: torch.autocast(device.type, PRECISIONS[recipe.precision])


def loss_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler | None:
    """The loss scale of float16; other precisions need none."""
    return torch.amp.GradScaler(device.type) if recipe.precision == "float16" else None
