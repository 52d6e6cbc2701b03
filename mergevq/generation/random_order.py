"""Decoding of the kept codes in any order, several at a time (RandAR's parallel decoding; section 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mergevq.cuda_graphs import CudaGraphs
from mergevq.errors import InputError
from mergevq.generation.code_sampler import CodeSampler
from mergevq.generation.kv_cache import KVCache
from mergevq.generation.model import Generator
from mergevq.generation.sampling_config import guided_steps
from mergevq.generation.transformer import Transformer


def arccos_schedule(tokens: int, steps: int) -> list[int]:
    """The number of tokens that each of `steps` passes decodes: few at first, many at the end, at least one each.

    After pass t the share 1 - cos(pi/2 (t + 1) / steps) of the tokens is decoded, and one token more (RandAR).
    Raises `InputError` for more steps than tokens.
    """
    if not 1 <= steps <= tokens:
        raise InputError(
            f"steps is {steps}: there are {tokens} tokens to decode, ask for 1 to {tokens} steps"
        )
    counts, done = [], 0
    for step in range(steps):
        goal = int(tokens * (1 - math.cos(math.pi / 2 * (step + 1) / steps))) + 1
        # Every pass before and after this one takes at least one token, the last one what is left.
        goal = tokens if step == steps - 1 else min(max(goal, done + 1), tokens - (steps - 1 - step))
        counts.append(goal - done)
        done = goal
    return counts


def decode(
    generator: Generator,
    sampler: CodeSampler,
    labels: Tensor,
    *,
    keep: int,
    order: Tensor,
    uniforms: Tensor,
    steps: int | None,
    fixed: Tensor | None,
    fixed_mask: Tensor | None,
) -> tuple[Tensor, int, int]:
    """Codes (B, K) in canonical order by `uniforms` (B, K, S) of each position; the most passes of any row; the cache's
    peak bytes.

    Rows with equally many fixed codes are decoded together, so that a row never depends on the others.
    """
    batch = len(labels)
    _check(order, fixed, fixed_mask, batch, keep, generator.config.bits)
    if steps is not None:
        arccos_schedule(keep, steps)
    if fixed is None or fixed_mask is None:
        fixed, fixed_mask = torch.zeros_like(order), torch.zeros_like(order, dtype=torch.bool)
    # Fixed codes come first, otherwise in the given order.
    order = order.gather(1, (~fixed_mask).gather(1, order).to(torch.uint8).argsort(dim=1, stable=True))
    num_fixed = fixed_mask.sum(1)
    codes, passes, peak = fixed.clone(), 0, 0
    for count in num_fixed.unique().tolist():
        if count == keep:
            continue
        rows = (num_fixed == count).nonzero()[:, 0]
        schedule = arccos_schedule(keep - count, min(steps or keep, keep - count))
        codes[rows], cache_bytes = _decode(
            generator, sampler, labels[rows], keep, order[rows], uniforms[rows], schedule, fixed[rows]
        )
        passes, peak = max(passes, len(schedule)), max(peak, cache_bytes)
    return codes, passes, peak


def _decode(
    generator: Generator,
    sampler: CodeSampler,
    labels: Tensor,
    keep: int,
    order: Tensor,
    uniforms: Tensor,
    schedule: list[int],
    codes: Tensor,
) -> tuple[Tensor, int]:
    """Codes (B, K) with all but the first sum(schedule) of `order` replaced; and the cache's bytes.

    The sequence is the prefix, then instruction and code of each position in turn. A pass writes the codes of the last
    pass into the cache, whose instructions but the first were written without the codes between them, and queries the
    next positions: each query sees all decoded codes and itself.
    """
    device, transformer = labels.device, generator.transformer
    done = keep - sum(schedule)
    starts = [done + sum(schedule[:step]) for step in range(len(schedule))]
    fractions = [start / keep for start in starts]
    guided = guided_steps(sampler.guidance, fractions, len(sampler.settings))
    scales = sampler.scales(fractions, device)
    sequence = _Sequence.begun(generator, labels, keep, order, codes, done)
    length = sequence.prefix.shape[1]
    bucket = 8 if generator.bucket > 1 else 1
    slots = length + 2 * keep + 1  # the last one takes what pads a step
    cache = transformer.cache(len(labels), slots, sequence.prefix)
    peak, halves, written, graphs = 0, 1, 0, CudaGraphs(device)

    for step, (start, count) in enumerate(zip(starts, schedule, strict=True)):
        if guided and step in (guided.start, guided.stop):
            graphs.forget()
        if guided and step == guided.start:
            _add_unconditional(transformer, cache, sequence, written)
            halves = 2
        elif guided and step == guided.stop:
            cache.keep_rows(len(labels))
            halves = 1
        peak = max(peak, cache.num_bytes)

        end = length + 2 * start  # first slot after the decoded codes
        queried = slice(start, start + count)
        write_slots, visible, mask = _step_shape(written, end, count, bucket, generator.bucket, slots, device)
        x, step_rotation = sequence.step(written, end, queried, halves, padded=len(write_slots))
        hidden = graphs(
            visible,
            partial(transformer.step, cache=cache, visible=visible),
            x,
            step_rotation,
            write_slots,
            mask,
        )
        hidden = hidden[:, end - written : end - written + count].flatten(0, 1)

        positions = order[:, queried]
        step_uniforms = uniforms.gather(1, positions[..., None].expand(-1, -1, uniforms.shape[-1])).flatten(
            0, 1
        )
        drawn = graphs("draw", sampler.draw, hidden, step_uniforms, scales[step]).view(positions.shape)
        codes.scatter_(1, positions, drawn)
        sequence.tokens[:, end + 1 : end + 2 * count : 2] = generator.tokens.embed(drawn)
        written = end + 1
    return codes, peak


@dataclass(frozen=True)
class _Sequence:
    """The sequence of a decoding: the prefix, then instruction and code of each position in turn."""

    prefix: Tensor  # (B, P, D)
    uncond_prefix: Tensor
    tokens: Tensor  # (B, P + 2 K, D), zero where codes are not decoded yet
    rotation: Tensor  # (B, P + 2 K, 2, head_dim)
    instructions: Tensor  # (B, K, D)
    query_rotation: Tensor  # (B, K, 2, head_dim)

    @classmethod
    def begun(
        cls, generator: Generator, labels: Tensor, keep: int, order: Tensor, codes: Tensor, done: int
    ) -> _Sequence:
        """The sequence whose first `done` positions of `order` have their codes."""
        prefix, uncond_prefix = (generator.prefix(y, keep) for y in (labels, torch.full_like(labels, -1)))
        table = generator.kept_rotation(keep)
        instructions = generator.instructions(table)[order]
        rotation = generator.sequence_rotation(prefix.shape[1], table[order].repeat_interleave(2, 1))
        embedded = torch.zeros_like(instructions)
        embedded[:, :done] = generator.tokens.embed(codes.gather(1, order[:, :done]))
        tokens = torch.cat([prefix, torch.stack([instructions, embedded], 2).flatten(1, 2)], 1)
        return cls(prefix, uncond_prefix, tokens, rotation, instructions, table[order])

    def step(
        self, written: int, end: int, queried: slice, halves: int, *, padded: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens `written` to `end` and the instructions `queried`, (halves B, padded, D), with their rotation."""
        x = torch.cat([self.tokens[:, written:end], self.instructions[:, queried]], 1)
        if halves == 2:
            other = x.clone()
            if written == 0:
                other[:, : self.prefix.shape[1]] = self.uncond_prefix
            x = torch.cat([x, other])
        rotation = torch.cat([self.rotation[:, written:end], self.query_rotation[:, queried]], 1)
        rotation = rotation.repeat(halves, 1, 1, 1)
        pad = padded - x.shape[1]
        return F.pad(x, (0, 0, 0, pad)), F.pad(rotation, (0, 0, 0, 0, 0, pad))


def _add_unconditional(transformer: Transformer, cache: KVCache, sequence: _Sequence, written: int) -> None:
    """Give the cache a second half for the unconditional sequences, of which `written` tokens are in the first half."""
    prefix = sequence.uncond_prefix
    other = transformer.cache(len(prefix), cache.slots, prefix)
    if written:
        x = torch.cat([prefix, sequence.tokens[:, prefix.shape[1] : written]], 1)
        index = torch.arange(written, device=x.device)
        causal = torch.ones(written, written, dtype=torch.bool, device=x.device).tril()
        transformer.step(x, sequence.rotation[:, :written], index, causal, cache=other, visible=written)
    cache.replace(lambda conditional, unconditional: torch.cat([conditional, unconditional]), other)


def _step_shape(
    written: int, end: int, queries: int, bucket: int, visible_bucket: int, slots: int, device: torch.device
) -> tuple[Tensor, int, Tensor]:
    """The slots (T,) that a step writes, how many slots it reads, and its mask (T, visible) bool.

    The step writes the sequence's slots `written` to `end` and queries `queries` positions; T is padded to a multiple of
    `bucket`."""
    total = end + queries - written
    padded = math.ceil(total / bucket) * bucket
    index = torch.arange(written, written + padded, device=device)
    write_slots = torch.where(index < end + queries, index, slots - 1)
    visible = min(slots, math.ceil((end + queries) / visible_bucket) * visible_bucket)
    column = torch.arange(visible, device=device)
    # Padding sees the first slot, because a token that sees none has no attention.
    mask = (column <= index[:, None]) & ((column < end) | (column == index[:, None]))
    mask = mask & (index < end + queries)[:, None] | (column == 0)
    return write_slots, visible, mask


def _check(
    order: Tensor, fixed: Tensor | None, fixed_mask: Tensor | None, batch: int, keep: int, bits: int
) -> None:
    for name, tensor in {"order": order, "fixed": fixed, "fixed_mask": fixed_mask}.items():
        if tensor is not None and tuple(tensor.shape) != (batch, keep):
            raise InputError(
                f"{name} is {tuple(tensor.shape)}: it must be ({batch}, {keep}), a row per sample"
            )
    if (fixed is None) != (fixed_mask is None):
        raise InputError("fixed codes need both fixed and fixed_mask")
    ranks = torch.arange(keep, device=order.device).expand(batch, -1)
    if not torch.equal(order.sort(1).values, ranks):
        raise InputError(f"order must hold each of 0 to {keep - 1} once per row")
    if fixed is not None and fixed_mask is not None:
        chosen = fixed[fixed_mask]
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < 2**bits:
            raise InputError(f"fixed holds codes outside 0 to {2**bits - 1}")
