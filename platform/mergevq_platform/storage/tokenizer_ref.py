"""The frozen tokenizer of stage 2: its location, and the hash by which codes, recipe and generator recognise it.

Codes mean nothing without the very weights that made them. Its identity is the sha256 of its `model.safetensors` (averaged
weights), which code sets, recipes, checkpoints of generators and generated images all record. Beside it stands the hash of
all weights but those of Source Recovery, which neither makes nor decodes codes: a tokenizer that differs in it alone (`mergevq
train recovery_gr_256`) may take the place of the recorded one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

import mergevq
from mergevq.errors import InputError
from mergevq.hub import on_hub
from mergevq.image_size import ImageSize, grid_of, height_width, parse_size
from mergevq.serialization import WEIGHTS, read_config
from mergevq.tokenizer import MergeVQ
from mergevq_platform.storage import checkpoints


@dataclass(frozen=True)
class TokenizerRef:
    """One tokenizer, in a form that travels to workers and into manifests."""

    location: str  # a checkpoint, a tokenizer alone, or a URI of either
    sha256: str  # of its weights file
    image_size: ImageSize
    grid_tokens: int
    vocabulary: int
    codes_sha256: str | None = (
        None  # of its weights without Source Recovery; none: recorded before there was one
    )

    @classmethod
    def of(cls, tree: dict[str, Any]) -> TokenizerRef:
        """The tokenizer of its plain values. Raises `InputError` for an image size that is none."""
        return cls(**{**tree, "image_size": parse_size(tree["image_size"])})

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the cells, which are squares."""
        height, width = height_width(self.image_size)
        return grid_of(self.image_size, math.isqrt(height * width // self.grid_tokens))

    def makes_codes_of(self, sha256: str | None, codes_sha256: str | None) -> bool:
        """Whether it is the tokenizer with these hashes, or differs from it in Source Recovery alone; without any, yes."""
        return sha256 in (None, self.sha256) or (
            codes_sha256 is not None and codes_sha256 == self.codes_sha256
        )

    def load(self, device: torch.device | str = "cpu") -> MergeVQ:
        """The tokenizer in evaluation mode, without gradients. Raises `InputError` if other weights lie there now."""
        with checkpoints.weights(self.location) as directory:
            found = checkpoints.weights_sha256(directory)
            if found != self.sha256:
                raise InputError(mismatch(f"the tokenizer at {self.location}", found, self.sha256))
            return mergevq.load(directory).requires_grad_(False).to(device)

    def to_tree(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def find_tokenizer(
    place: str, *, sha256: str | None = None, codes_sha256: str | None = None, key: str = "tokenizer"
) -> TokenizerRef:
    """The tokenizer of a run directory (its newest whole checkpoint), a checkpoint, a tokenizer alone, a URI, or of the Hub.

    Raises `InputError`, naming `key`, if there is none, or if it is not the one with the given hashes: with `codes_sha256` its
    Source Recovery may be another.
    """
    with checkpoints.weights(place) as directory:
        if not (directory / WEIGHTS).is_file():
            raise InputError(
                f"{key}: '{place}' holds no tokenizer: give a run, a checkpoint, an imported tokenizer or hf://owner/name"
            )
        config = read_config(directory)
        if checkpoints.is_bare(place):
            location = (
                place if on_hub(place) else str(Path(place).resolve())
            )  # workers run in other directories
        else:  # a run goes on; its checkpoint of now is what is meant
            location = checkpoints.at_step(place, checkpoints.about(directory)["step"])
        found = TokenizerRef(
            location,
            checkpoints.weights_sha256(directory),
            config.image_size,
            config.grid_tokens,
            config.quantizer.vocabulary,
            sha256_of_codes(directory / WEIGHTS),
        )
    if not found.makes_codes_of(sha256, codes_sha256):
        raise InputError(mismatch(f"{key}: the tokenizer at {location}", found.sha256, sha256 or ""))
    return found


def sha256_of_codes(weights: Path) -> str:
    """Hex sha256 of the names, types, shapes and values of a tokenizer's tensors, without those of Source Recovery."""
    digest = hashlib.sha256()
    with safe_open(weights, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            if not name.startswith("recovery."):
                tensor = tensors.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
                # A moving average of equal weights makes 0 of -0, which is the same weight.
                digest.update((tensor + 0).flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def open_tokenizer(location: str, sha256: str | None, *, key: str) -> MergeVQ:
    """The tokenizer at a place, in evaluation mode. Raises `InputError`, naming `key`, if another lies there than `sha256` says."""
    with checkpoints.weights(location) as directory:
        if sha256 is not None:
            found = checkpoints.weights_sha256(directory)
            if found != sha256:
                raise InputError(
                    f"{key}: {location} has weights {found[:12]}…, but the run began with "
                    f"{sha256[:12]}…: put those back, or begin another run"
                )
        return mergevq.load(directory)


def mismatch(what: str, found: str, expected: str) -> str:
    """The message for codes and tokenizer that do not belong together."""
    return (
        f"{what} has weights {found[:12]}…, but {expected[:12]}… is recorded: its codes mean something else; give the "
        "tokenizer that made them (its Source Recovery alone may be another), or tokenize and train again"
    )
