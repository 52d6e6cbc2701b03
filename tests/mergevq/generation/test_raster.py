"""Decoding in raster order: the cache changes nothing, forgetting repeated codes changes nothing, and it is small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mergevq.generation import GuidanceConfig, SamplingConfig
from mergevq.generation import raster as decoding
from mergevq.generation.cache_layout import DistinctCodes
from mergevq.generation.code_sampler import CodeSampler

GREEDY = SamplingConfig(temperature=0.0)
LABELS = torch.tensor([0, 1, 2, -1, 1])


@dataclass(frozen=True)
class Scripted(CodeSampler):
    """Draws the codes of a script and remembers what it would have drawn them from."""

    codes: Tensor = field(default_factory=lambda: torch.empty(0))  # (B, N)
    hidden: list[Tensor] = field(default_factory=list)

    def draw(self, hidden: Tensor, uniforms: Tensor, scales: Tensor, allowed: Tensor | None = None) -> Tensor:
        self.hidden.append(hidden)
        return self.codes[:, len(self.hidden) - 1]


def scripted(
    generator, codes: Tensor, *, compress: bool, guidance: GuidanceConfig | None = None, keep: int = 9
):  # type: ignore[no-untyped-def]
    """The hidden vectors (N entries of (B or 2 B, D)) that lead to each of `codes` (B, N), and the cache's bytes."""
    sampler = Scripted(generator.tokens, [(1.0, 0, 1.0)] * 2, guidance or GuidanceConfig(), codes)
    uniforms = torch.zeros(*codes.shape, 2, dtype=torch.float64)
    with torch.inference_mode():
        _, _, held = decoding.decode(
            generator,
            sampler,
            torch.arange(len(codes)) % 3,
            keep=keep,
            uniforms=uniforms,
            compress=compress,
            limit_distinct=False,
        )
    return sampler.hidden, held


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("raster", {}),
        ("raster", {"split": [2, 2, 2], "transformer": {"qk_norm": True, "prefix_rotation": "zero"}}),
        ("mergear", {}),
        ("mergear", {"window": 3, "split": [6]}),
    ],
)
def test_greedy_decoding_equals_the_teacher_forced_forward(
    random_generator: Callable, generate: Callable, kind: str, changes: dict, dtype: torch.dtype
) -> None:
    generator = random_generator(kind, changes).to(dtype)
    made = generate(generator, LABELS, sampling=GREEDY)
    assert made.indices.shape == (5, 16)
    assert made.indices.unique().numel() > 3, "a constant would prove nothing"
    prediction = generator(made.indices, None, LABELS, 9)
    best = torch.stack([logits.argmax(-1) for logits in prediction.logits], -1)
    assert torch.equal(generator.tokens.join(best), made.indices)


@pytest.mark.parametrize("kind", ["raster", "mergear"])
@pytest.mark.parametrize(
    "guidance",
    [
        {"scale": 2.5},
        {"scale": (1.0, 3.0), "schedule": "linear"},
        {"scale": 3.0, "schedule": "power_cosine", "power": 0.7},
        {"scale": 0.0, "interval": (0.3, 0.8)},
    ],
)
def test_guided_greedy_decoding_mixes_two_teacher_forced_forwards(
    random_generator: Callable, generate: Callable, kind: str, guidance: dict
) -> None:
    generator, config = random_generator(kind), GuidanceConfig(**guidance)
    made = generate(generator, LABELS, sampling=GREEDY, guidance=config)
    conditional = generator(made.indices, None, LABELS, 9).logits
    unconditional = generator(made.indices, None, torch.full_like(LABELS, -1), 9).logits
    best = []
    for j in range(2):
        scale = torch.tensor([config.scales(cell / 16, 2)[j] for cell in range(16)])[:, None]
        best.append((unconditional[j] + scale * (conditional[j] - unconditional[j])).argmax(-1))
    assert torch.equal(generator.tokens.join(torch.stack(best, -1)), made.indices)
    assert not torch.equal(made.indices, generate(generator, LABELS, sampling=GREEDY).indices)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 10**6),
    st.sampled_from(
        [{}, {"scale": 2.0}, {"scale": 2.0, "schedule": "linear"}, {"scale": 2.0, "interval": (0.4, 0.7)}]
    ),
    st.sampled_from([1, 64]),
)
def test_the_compressed_cache_gives_what_the_masked_one_and_the_forward_give(
    random_generator: Callable, variety: int, window: int, seed: int, guidance: dict, bucket: int
) -> None:
    """Batches whose rows repeat differently: from all cells alike to nearly all different."""
    generator = random_generator("mergear", {"window": window}, seed=seed % 5)
    generator.compiled = bucket > 1  # pads its steps, compiled or not
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 64, (4, 16), generator=random)
    codes[1:] %= variety
    codes[3] = 5
    config = GuidanceConfig(**guidance)
    whole, whole_bytes = scripted(generator, codes, compress=False, guidance=config)
    compressed, bytes_held = scripted(generator, codes, compress=True, guidance=config)
    for masked, forgetful in zip(whole, compressed, strict=True):
        torch.testing.assert_close(forgetful, masked, rtol=1e-9, atol=1e-9)
    if bucket == 1 and codes.unique(dim=1).shape[1] < 9 and not guidance:
        assert bytes_held <= whole_bytes
    # The conditional half against one pass over the whole masked sequence.
    states = []
    hook = generator.transformer.norm.register_forward_hook(lambda _, __, out: states.append(out))
    generator(codes, None, torch.arange(4) % 3, 9)
    hook.remove()
    for cell in range(16):
        torch.testing.assert_close(compressed[cell][:4], states[0][:, 1 + cell], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("distinct", "keep"), [(1, 4), (3, 4), (9, 9), (9, 4), (16, 4), (16, 16)])
def test_the_cache_holds_distinct_codes_window_and_prefix(
    random_generator: Callable, distinct: int, keep: int
) -> None:
    generator = random_generator("mergear")
    codes = (torch.arange(16) % distinct)[None]
    _, held = scripted(generator, codes, compress=True, keep=keep)
    config = generator.config.transformer
    entry = 8 * config.width * 2 * config.depth  # bytes of a key and a value, all layers
    # The last cell is cached by none; a cache made for `keep` codes grows only where there are more.
    expected = min(keep, 15) if distinct <= keep else 15
    assert held == entry * (2 + 2 + expected)


def test_a_slot_of_a_repeated_code_is_taken_by_the_cell_that_leaves_the_window() -> None:
    from mergevq.generation.cache_layout import CompressedLayout

    layout = CompressedLayout(2, 16, 2, 2, 1, 4, 16, torch.device("cpu"))
    rows = torch.tensor([[7, 7, 7, 7, 8, 7], [1, 2, 3, 1, 1, 1]])
    slots = [layout.allocate(cell, rows[:, cell]).slots[:, 0].tolist() for cell in range(6)]
    # Prefix 0-1, ring 2-3, distinct codes from 4 on.
    assert slots == [[4, 4], [3, 5], [2, 6], [3, 3], [5, 2], [3, 3]]
    assert layout.slot_to_position(8).tolist() == [[0, 1, 4, 7, 2, 6, 6, 7], [0, 1, 6, 7, 2, 3, 4, 7]]


def test_distinct_codes_are_listed_in_their_order_and_fill_up() -> None:
    distinct = DistinctCodes(2, 3, torch.device("cpu"))
    columns = [[5, 1], [5, 2], [6, 3], [5, 1], [7, 3]]
    new = [distinct.observe(torch.tensor(column)).tolist() for column in columns]
    assert new == [[True, True], [False, True], [True, True], [False, False], [True, False]]
    assert distinct.codes.tolist() == [[5, 6, 7], [1, 2, 3]]
    assert distinct.count.tolist() == [3, 3]


@pytest.mark.parametrize("compress", [True, False])
def test_the_limit_lets_no_new_code_appear_after_keep_different_ones(
    random_generator: Callable, generate: Callable, compress: bool
) -> None:
    generator = random_generator("mergear", {"split": [2, 2, 2]})
    options = {"keep": 4, "sampling": SamplingConfig(temperature=3.0), "compress": compress}
    free = generate(generator, LABELS, **options)
    limited = generate(generator, LABELS, limit_distinct=True, **options)
    counts = [len(set(row)) for row in limited.indices.tolist()]
    assert max(counts) == 4
    for unbound, row in zip(free.indices.tolist(), limited.indices.tolist(), strict=True):
        border = next(i for i in range(1, 17) if len(set(unbound[:i])) == 4)
        assert unbound[:border] == row[:border], "until then nothing changes"
        assert set(row) == set(row[:border])


def test_the_merge_token_tells_the_kept_count(random_generator: Callable, generate: Callable) -> None:
    generator = random_generator("mergear")
    few, many = (generate(generator, LABELS, keep=keep).indices for keep in (4, 16))
    assert not torch.equal(few, many)
