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
from mergevq.generation.config import (
    GeneratorConfig,
    MergeARConfig,
    RandomOrderConfig,
    RasterConfig,
    is_ragged,
)
from mergevq.generation.masks import first_occurrences, mergear_mask
from mergevq.generation.transformer import Transformer


class TeacherForced(NamedTuple):
    """Predictions of known codes, each from the true codes before it."""

    logits: list[Tensor]  # (B, T, V) per sub-token
    targets: Tensor  # (B, T) int64 indices
    present: Tensor | None = None  # (B, T) bool: which targets there are; None: all


class Generator(nn.Module):
    """A class-conditional autoregressive model over a tokenizer's codes."""

    trained_keeps: Tensor
    count_histogram: Tensor  # where the configuration is `ragged`

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        shape = config.transformer
        self.transformer = Transformer(shape, shape.depth)
        self.tokens = FactorisedCodes(shape, config.sub_bits, config.intra_depth)
        self.classes = nn.Embedding(config.classes + 1, shape.width)  # the last row stands for no class
        keeps = conditioning_keeps(config)
        self.keeps = nn.Embedding(len(keeps), shape.width) if keeps else None
        trained = () if isinstance(config, RasterConfig) else config.keeps
        self.register_buffer("trained_keeps", torch.tensor(trained, dtype=torch.int64), persistent=False)
        if is_ragged(config):
            # Images of each class, and of none, at each kept count.
            counted = torch.zeros(config.classes + 1, len(trained), dtype=torch.int64)
            self.register_buffer("count_histogram", counted)
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
        keep: int | Tensor | None = None,
        order: Tensor | None = None,
    ) -> TeacherForced:
        """The logits of every target, for known codes.

        `indices` (B, K) int64 of the kept tokens in canonical order; `assignment` (B, N) int64, the kept token of each
        cell, None where the indices are those of all N cells; `labels` (B,) int64, -1 for no class. Targets are all N
        cells in raster order or, in random order, the K indices in `order` (B, K), a permutation per row, drawn from
        PyTorch's global random numbers where it is None. `keep` (B,) int64: each image its own count; what the indices of
        the others have beyond theirs is padding, of any value, and so are these places of `order`. No target sees it, as it
        stands at the end. Raises `InputError` for a kept count that was not trained; of counts on a GPU, whose values the
        host does not read, PyTorch's embedding fails.
        """
        if isinstance(self.config, RandomOrderConfig):
            keep = indices.shape[1] if keep is None else keep
            present = None
            if isinstance(keep, Tensor):
                present = torch.arange(indices.shape[1], device=indices.device) < keep[:, None]
                indices = indices.where(present, 0)
            if order is None:
                chance = torch.rand(indices.shape, device=indices.device)
                order = (chance if present is None else chance.where(present, torch.inf)).argsort(1)
            return self._random_order(indices, labels, keep, order)._replace(present=present)
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

    def _random_order(
        self, indices: Tensor, labels: Tensor, keep: int | Tensor, order: Tensor
    ) -> TeacherForced:
        prefix = self.prefix(labels, keep)
        length = prefix.shape[1]
        targets = indices.gather(1, order)
        if isinstance(keep, Tensor):  # a table of positions for each row
            table = self.kept_rotation(keep, order.shape[1])
            rows = torch.arange(len(order), device=order.device)[:, None]
            rotation, instructions = table[rows, order], self.instructions(table)[rows, order]
        else:
            table = self.kept_rotation(keep)
            rotation, instructions = table[order], self.instructions(table)[order]
        pairs = torch.stack([instructions, self.tokens.embed(targets)], 2).flatten(1, 2)
        # The last code is only a target.
        x = self.dropout(torch.cat([prefix, pairs], 1)[:, :-1])
        rotations = self.sequence_rotation(length, rotation.repeat_interleave(2, 1))[:, :-1]
        hidden = self.transformer(x, rotations)[:, length::2]
        return TeacherForced(self.tokens.logits(hidden, targets), targets)

    def prefix(self, labels: Tensor, keep: int | Tensor | None) -> Tensor:
        """Labels (B,), -1 for no class -> the tokens (B, P, D) before the codes: class and, where there is one, kept count.

        `keep`: one for all or, (B,) int64, one for each. Raises as `forward` for a kept count that was not trained.
        """
        index = self._keep_indices(keep) if isinstance(keep, Tensor) else self.keep_index(keep)
        classes = self.classes(torch.where(labels < 0, self.config.classes, labels))[:, None]
        if self.keeps is None:
            return classes
        if isinstance(index, Tensor):
            return torch.cat([classes, self.keeps(index)[:, None]], 1)
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

    def _keep_indices(self, keep: Tensor) -> Tensor | int:
        if isinstance(self.config, RasterConfig):
            return self.keep_index(None)
        found = keep[:, None] == self.trained_keeps
        known = found.any(1)
        if keep.device.type == "cpu" and not bool(known.all()):
            self.keep_index(int(keep[~known][0]))
        # Beyond the last one where there is none, so that the embedding fails.
        return torch.where(known, found.int().argmax(1), len(self.trained_keeps))

    def cell_rotation(self) -> Tensor:
        """Rotary factors (N, 2, head_dim) of the raster cells."""
        return self._rotations(self._grid(self.config.grid_tokens, self.config.rows_columns[1]))

    def kept_rotation(self, keep: int | Tensor, tokens: int | None = None) -> Tensor:
        """Rotary factors (K, 2, head_dim) of the kept tokens, see `RandomOrderConfig`.

        Of counts `keep` (B,) int64: (B, `tokens`, 2, head_dim), a row's first as many as it keeps being its own.
        """
        assert isinstance(self.config, RandomOrderConfig)
        sides = self.config.rows_columns
        if isinstance(keep, Tensor):
            assert tokens is not None
            each = keep.double().sqrt().ceil().long()[:, None]  # exact: a root is rounded correctly
            coordinates = self._grid(tokens, each)
            if self.config.positions == "stretched":
                factors = torch.stack([side / each.double() for side in sides], -1)
                coordinates = coordinates * factors.to(coordinates.dtype)
            return self._rotations(coordinates)
        columns = math.isqrt(keep - 1) + 1
        coordinates = self._grid(keep, columns)
        if self.config.positions == "stretched":
            coordinates = coordinates * coordinates.new_tensor([side / columns for side in sides])
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

    def _grid(self, cells: int, columns: int | Tensor) -> Tensor:
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
