"""The variant of a vision transformer in a weights file: timm would resample some differences silently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Facts = dict[str, int]
# What the names of timm's vision transformers are made of: size, patch, registers, and the training.
NAME = re.compile(r"vit_([a-z0-9]+)_patch(\d+)(_reg\d+)?_(?!reg\d)(.+)")
SIZES = ("tiny", "small", "base", "large", "huge", "giant", "so400m", "so150m")


def facts(state: dict[str, Tensor]) -> Facts:
    """Patch size (pixels), width, depth and number of registers that the tensors tell; none for other networks."""
    patches = state.get("patch_embed.proj.weight")
    if patches is None:
        return {}
    found = {"width": patches.shape[0]}
    if patches.ndim == 4:
        found["patch size"] = patches.shape[-1]
    blocks = {match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.[a-z]", name))}
    if blocks:
        found["depth"] = len(blocks)
    if "cls_token" in state:
        registers = state.get("reg_token", state.get("register_tokens"))
        found["registers"] = 0 if registers is None else registers.shape[1]
    return found


def other_variant(state: dict[str, Tensor], model: Any, name: str) -> str | None:
    """The differences of the file's network from timm's `model` of that `name`, and the model it looks like; None without any."""
    wanted, found = facts(model.state_dict()), facts(state)
    differing = [fact for fact in wanted if fact in found and found[fact] != wanted[fact]]
    if not differing:
        return None
    text = ", ".join(f"{fact} {found[fact]}, not {wanted[fact]}" for fact in differing)
    like = next((other for other in _alike(name, found) if _facts_of(other) == found), None)
    return f"it has {text}" + (f": it looks like {like}: name that model" if like else ": name its own model")


def _alike(name: str, found: Facts) -> Iterator[str]:
    import timm  # takes seconds, and most processes read no such file

    parts = NAME.fullmatch(name.partition(".")[0])
    if parts is None:
        return
    size, _, _, training = parts.groups()
    registers = f"_reg{found['registers']}" if found.get("registers") else ""
    for other in (size, *SIZES):
        candidate = f"vit_{other}_patch{found.get('patch size')}{registers}_{training}"
        if timm.is_model(candidate):
            yield candidate


def _facts_of(name: str) -> Facts:
    import timm

    with torch.device("meta"):
        return facts(timm.create_model(name, pretrained=False, num_classes=0).state_dict())
