"""Initialisation of the encoder from a pretrained vision transformer by weight selection (appendix A.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.file_kinds import some
from mergevq.tokenizer import MergeVQ
from mergevq.weights_file import read_weights, unusable

# timm's names of a vision transformer's block -> ours.
NAMES = {"attn.": "attention.", "ls1.": "scale1.", "ls2.": "scale2."}


@torch.no_grad()
def select_weights(tokenizer: MergeVQ, path: str, *, sha256: str | None = None) -> int:
    """Fill the encoder's blocks and summary token from a timm vision transformer such as DINOv2; returns the tensors set.

    `path`: safetensors, or a PyTorch state dict. Of every dimension that is larger there, evenly spread elements are
    taken ("Initializing Models with Larger Ones"): each n-th where the sizes divide, else the rounded points of a
    linear spacing. Patch embedding, positions and final norm stay as they are. Raises `InputError` for a missing
    file, a wrong checksum, or a network with fewer blocks or smaller tensors than the encoder.
    """
    found = read_weights(path, key="task.initial_weights", sha256=sha256)
    encoder = tokenizer.encoder
    wanted = {f"blocks.{name}": value for name, value in encoder.blocks.state_dict().items()}
    wanted["cls_token"] = encoder.summary_token
    renamed = {_ours(name): value for name, value in found.items()}
    missing = sorted(name for name in wanted if name not in renamed)
    # A network without LayerScale leaves ours at its start.
    missing = [name for name in missing if ".scale" not in name]
    if missing:
        raise InputError(
            f"task.initial_weights: '{path}' lacks {some(missing)}; it has {some(list(found))}: "
            f"give a timm vision transformer with at least {len(encoder.blocks)} blocks"
        )
    if problem := unusable({name: value for name, value in wanted.items() if name in renamed}, renamed):
        raise InputError(f"task.initial_weights: '{path}' {problem}: give the network's own weights")
    count = 0
    for name, target in wanted.items():
        if name in renamed:
            target.copy_(selected(renamed[name], target.shape, name=name))
            count += 1
    return count


def selected(source: Tensor, shape: torch.Size, *, name: str = "tensor") -> Tensor:
    """Evenly spread elements of `source` so that it has `shape`. Raises `InputError` if it is smaller anywhere."""
    if source.ndim != len(shape) or any(have < want for have, want in zip(source.shape, shape, strict=False)):
        raise InputError(
            f"task.initial_weights: {name} is {tuple(source.shape)}, too small for the encoder's {tuple(shape)}: give a larger network"
        )
    for dim, (have, want) in enumerate(zip(source.shape, shape, strict=True)):
        step = have // want
        index = (
            torch.arange(want) * step
            if have % want == 0
            else torch.linspace(0, have - 1, want).round().long()
        )
        source = source.index_select(dim, index)
    return source


def _ours(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(f".{theirs}", f".{ours}")
    return name
