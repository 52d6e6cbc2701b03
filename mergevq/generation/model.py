"""The generator: class and kept count in, logits of codes out. Start reading here.

`forward` gives the logits of known codes, for training. `sampling.py` draws new codes; `raster.py` and
`random_order.py` decode them in the order that the configuration's kind says.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from mergevq.errors import InputError
from mergevq.generation import rotary
from mergevq.generation.code_heads import FactorisedCodes
from mergevq.generation.config import GeneratorConfig, MergeARConfig, RandomOrderConfig, RasterConfig
from mergevq.generation.masks import first_occurrences, mergear_mask
from mergevq.generation.transformer import Transformer


class TeacherForced(NamedTuple):
    """Predictions of known codes, each from the true codes before it."""

    logits: list[Tensor]  # (B, T, V) per sub-token
    targets: Tensor  # (B, T) int64 indices


class Generator(nn.Module):
    """A class-conditional autoregressive model over a tokenizer's codes."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.transformer
        self.transformer = Transformer(shape, shape.depth)
        self.tokens = FactorisedCodes(shape, config.sub_bits, config.intra_depth)
        self.classes = nn.Embedding(config.classes + 1, shape.width)  # the last row stands for no class
        keeps = conditioning_keeps(config)
        self.keeps = nn.Embedding(len(keeps), shape.width) if keeps else None
        self.instruction = (
            nn.Parameter(torch.randn(shape.width) * 0.02) if isinstance(config, RandomOrderConfig) else None
        )
        self.dropout = nn.Dropout(shape.token_dropout)
        self.compiled = False
        self.apply(_init_weights)
        for head in self.tokens.heads:
            nn.init.zeros_(head.get_parameter("weight"))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`torch.compile` the transformer blocks in place. Sampling then pads its steps to few shapes.

        Takes the arguments of `torch.compile`; `dynamic=False` unless given.
        """
        kwargs.setdefault("dynamic", False)
        self.compiled = True
        for block in (*self.transformer.blocks, *self.tokens.intra.blocks):
            block.compile(*args, **kwargs)

    @property
    def bucket(self) -> int:
        """The multiple of cache slots that a step reads: shapes are few where each is compiled or recorded."""
        few_shapes = self.compiled or self.classes.weight.is_cuda
        return max(64, self.config.grid_tokens // 4) if few_shapes else 1

    def forward(
        self,
        indices: Tensor,
        assignment: Tensor | None,
        labels: Tensor,
        keep: int | None = None,
        order: Tensor | None = None,
    ) -> TeacherForced:
        """The logits of every target, for known codes.

        `indices` (B, K) int64 of the kept tokens in canonical order; `assignment` (B, N) int64, the kept token of each
        cell, None where the indices are those of all N cells; `labels` (B,) int64, -1 for no class. Targets are all N
        cells in raster order or, in random order, the K indices in `order` (B, K), a permutation per row, drawn from
        PyTorch's global random numbers where it is None. Raises `InputError` for a kept count that was not trained.
        """
        if isinstance(self.config, RandomOrderConfig):
            if order is None:
                order = torch.rand(indices.shape, device=indices.device).argsort(1)
            return self._random_order(indices, labels, indices.shape[1] if keep is None else keep, order)
        if order is not None:
            raise InputError(f"order belongs to random-order generators; this one is {self.config.kind}")
        cells = indices if assignment is None else indices.gather(1, assignment)
        prefix = self.prefix(labels, keep)
        length = prefix.shape[1]
        mask = None
        if isinstance(self.config, MergeARConfig):
            names = cells if assignment is None or self.config.duplicates == "code" else assignment
            first = first_occurrences(names[:, :-1])
            mask = mergear_mask(first, self.config.window, length)
        x = self.dropout(torch.cat([prefix, self.tokens.embed(cells[:, :-1])], 1))
        rotation = self.sequence_rotation(length, self.cell_rotation())[: x.shape[1]]
        hidden = self.transformer(x, rotation, mask)[:, length - 1 :]
        return TeacherForced(self.tokens.logits(hidden, cells), cells)

    def _random_order(self, indices: Tensor, labels: Tensor, keep: int, order: Tensor) -> TeacherForced:
        prefix = self.prefix(labels, keep)
        length = prefix.shape[1]
        rotation = self.kept_rotation(keep)
        targets = indices.gather(1, order)
        pairs = torch.stack([self.instructions(rotation)[order], self.tokens.embed(targets)], 2).flatten(1, 2)
        # The last code is only a target.
        x = self.dropout(torch.cat([prefix, pairs], 1)[:, :-1])
        rotations = self.sequence_rotation(length, rotation[order].repeat_interleave(2, 1))[:, :-1]
        hidden = self.transformer(x, rotations)[:, length::2]
        return TeacherForced(self.tokens.logits(hidden, targets), targets)

    def prefix(self, labels: Tensor, keep: int | None) -> Tensor:
        """Labels (B,), -1 for no class -> the tokens (B, P, D) before the codes: class and, where there is one, kept count.

        Raises `InputError` for a kept count that was not trained.
        """
        index = self.keep_index(keep)
        classes = self.classes(torch.where(labels < 0, self.config.classes, labels))[:, None]
        if self.keeps is None:
            return classes
        return torch.cat([classes, self.keeps.weight[index].expand_as(classes)], 1)

    def keep_index(self, keep: int | None) -> int:
        """The index of a kept count among those trained. Raises `InputError` for any other count."""
        config = self.config
        if isinstance(config, RasterConfig):
            # Not conditioned on the kept count, which may therefore be any in training.
            return 0
        if keep is None and len(config.keeps) == 1:
            return 0
        if keep not in config.keeps:
            known = ", ".join(map(str, config.keeps))
            raise InputError(f"keep is {keep}: this generator was trained with {known}")
        return config.keeps.index(keep)

    def cell_rotation(self) -> Tensor:
        """Rotary factors (N, 2, head_dim) of the raster cells."""
        return self._rotations(self._grid(self.config.grid_tokens, self.config.rows_columns[1]))

    def kept_rotation(self, keep: int) -> Tensor:
        """Rotary factors (K, 2, head_dim) of the kept tokens, see `RandomOrderConfig`."""
        assert isinstance(self.config, RandomOrderConfig)
        columns = math.isqrt(keep - 1) + 1
        coordinates = self._grid(keep, columns)
        if self.config.positions == "stretched":
            coordinates = coordinates * coordinates.new_tensor(
                [side / columns for side in self.config.rows_columns]
            )
        return self._rotations(coordinates)

    def sequence_rotation(self, prefix: int, rotation: Tensor) -> Tensor:
        """Factors (..., T, 2, head_dim) of the codes with those of `prefix` tokens before them."""
        front = rotation.new_zeros(*rotation.shape[:-3], prefix, *rotation.shape[-2:])
        if self.config.transformer.prefix_rotation == "identity":
            front[..., 0, :] = 1
        return torch.cat([front, rotation], -3)

    def instructions(self, rotation: Tensor) -> Tensor:
        """The position-instruction tokens (..., D) of factors (..., 2, head_dim): one learned vector, rotated."""
        assert self.instruction is not None
        heads = rearrange(self.instruction, "(h d) -> h d", h=self.config.transformer.heads)
        return rotary.rotate(heads, rotation[..., None, :, :]).flatten(-2)

    def _grid(self, cells: int, columns: int) -> Tensor:
        weight = self.classes.weight
        # Positions in half precision would collide.
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        return rotary.grid_coordinates(cells, columns, device=weight.device, dtype=dtype)

    def _rotations(self, coordinates: Tensor) -> Tensor:
        shape = self.config.transformer
        return rotary.rotations(coordinates, shape.head_dim, shape.rope_base)


def conditioning_keeps(config: GeneratorConfig) -> tuple[int, ...]:
    """The kept counts that a generator is conditioned on by a token; none where there is no choice."""
    match config:
        case RasterConfig():
            return ()
        case MergeARConfig():
            return config.keeps
        case RandomOrderConfig():
            return config.keeps if len(config.keeps) > 1 else ()


def build_generator(config: GeneratorConfig) -> Generator:
    """An untrained generator; its first weights come from PyTorch's global random numbers."""
    return Generator(config)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
