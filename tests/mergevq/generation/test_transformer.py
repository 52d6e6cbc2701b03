"""The backbone: its published parts, by formula, and that a token never sees what comes after it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mergevq.generation import (
    TransformerConfig,
    build_generator,
    generator_preset,
    list_generators,
)
from mergevq.generation.rotary import grid_coordinates, rotate, rotations
from mergevq.generation.transformer import RotaryAttention, SwiGLU, Transformer, TransformerBlock

CPU = torch.device("cpu")


def positions(side: int) -> Tensor:
    return grid_coordinates(side * side, side, device=CPU, dtype=torch.float64)


def transformer(**changes: object) -> TransformerConfig:
    fields: dict = {"depth": 2, "width": 32, "heads": 2, "hidden": 48, "dropout": 0.0, **changes}
    return TransformerConfig(**fields)


def test_rotary_scores_depend_on_the_offset_between_cells_alone() -> None:
    factors = rotations(positions(8), 16)
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = (rotate(q, factors) @ rotate(k, factors).T).view(
        8, 8, 8, 8
    )  # query row, column, key row, column
    torch.testing.assert_close(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1])
    torch.testing.assert_close(scores[0, 0, 3, 5], scores[2, 1, 5, 6])
    assert not torch.allclose(scores[0, 0, 3, 5], scores[0, 0, 5, 3]), "rows and columns differ"


def test_rotary_factors_are_llamagens_complex_rotations() -> None:
    head_dim, side = 16, 5
    x = torch.randn(side * side, head_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours = rotate(x, rotations(positions(side), head_dim))
    # LlamaGen: channel pairs as complex numbers; a quarter of the channels' frequencies for rows, then for columns.
    frequency = 10000.0 ** -(torch.arange(0, head_dim // 2, 2, dtype=torch.float64) / (head_dim // 2))
    cell = torch.arange(side * side)
    angle = torch.cat([torch.outer(cell // side, frequency), torch.outer(cell % side, frequency)], 1)
    # Their pairs are neighbours, ours stand half a head apart.
    paired = torch.complex(x[:, : head_dim // 2], x[:, head_dim // 2 :])
    theirs = paired * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(ours, torch.cat([theirs.real, theirs.imag], 1))


def test_the_feed_forward_is_swiglu_of_llamagens_size() -> None:
    assert TransformerConfig(depth=1, width=1024, heads=16).ffn_width == 2816
    assert TransformerConfig(depth=1, width=768, heads=12).ffn_width == 2048
    layer, x = SwiGLU(8, 6), torch.randn(3, 8)
    gate, up = layer.gate_up.weight[:6] @ x.T, layer.gate_up.weight[6:] @ x.T
    expected = (layer.down.weight @ (gate * torch.sigmoid(gate) * up)).T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_softmax_of_rotated_products(qk_norm: bool) -> None:
    config = transformer(qk_norm=qk_norm)
    layer, x = RotaryAttention(config).double(), torch.randn(1, 9, 32, dtype=torch.float64)
    factors = rotations(positions(3), config.head_dim)
    q, k, v = (layer.qkv.weight @ x[0].T).T.view(9, 3, 2, 16).permute(1, 2, 0, 3)
    if qk_norm:
        q, k = (t / (t.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() for t in (q, k))
    scores = rotate(q, factors) @ rotate(k, factors).transpose(1, 2) / math.sqrt(16)
    weights = scores.masked_fill(~torch.ones(9, 9, dtype=torch.bool).tril(), -torch.inf).softmax(-1)
    expected = (weights @ v).transpose(0, 1).flatten(1) @ layer.proj.weight.T
    torch.testing.assert_close(layer(x, factors, None, None)[0], expected)


def test_blocks_are_pre_norm_residuals() -> None:
    block, x = TransformerBlock(transformer()), torch.randn(2, 5, 32)
    root = (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    y = x + block.attention(x / root, None, None, None)
    root = (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(block(x, None, None), y + block.ffn(y / root))


def test_no_token_sees_a_later_one() -> None:
    model = Transformer(transformer(), 3).double().eval()
    x = torch.randn(1, 9, 32, dtype=torch.float64, requires_grad=True)
    out = model(x, rotations(positions(3), 16))
    for t in (0, 4, 8):
        (gradient,) = torch.autograd.grad(out[0, t].sum(), x, retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached.tolist() == [s <= t for s in range(9)]


def test_steps_through_a_cache_equal_one_pass() -> None:
    model = Transformer(transformer(), 3).double().eval()
    x, factors = torch.randn(2, 9, 32, dtype=torch.float64), rotations(positions(3), 16)
    whole = model(x, factors)
    cache = model.cache(2, 12, x)
    allowed = torch.ones(12, 12, dtype=torch.bool).tril()
    parts = [
        model.step(x[:, a:b], factors[a:b], torch.arange(a, b), allowed[a:b, :b], cache=cache, visible=b)
        for a, b in ((0, 4), (4, 5), (5, 9))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_llamagens_zeroed_class_row_makes_the_class_key_a_constant() -> None:
    """With `zero`, every query gives the class token the logit 0; with `identity` its key counts."""
    shares = {}
    for kind in ("zero", "identity"):
        config = generator_preset("test_raster")
        tree = {"prefix_rotation": kind, "depth": 2, "width": 32, "heads": 2, "hidden": 48}
        generator = build_generator(
            type(config)(transformer=TransformerConfig(**tree), classes=3, grid_tokens=16, bits=6)
        )
        factors = generator.sequence_rotation(1, generator.cell_rotation())
        assert factors.shape == (17, 2, 16)
        shares[kind] = rotate(torch.ones(16), factors)[0]
    assert torch.equal(shares["zero"], torch.zeros(16))
    assert torch.equal(shares["identity"], torch.ones(16))


@pytest.mark.parametrize("kind", ["raster", "mergear", "random_order"])
def test_the_large_model_has_the_published_size(kind: str) -> None:
    with torch.device("meta"):
        generator = build_generator(generator_preset(f"{kind}_l"))
    count = sum(parameter.numel() for parameter in generator.parameters())
    assert count == pytest.approx(343.6e6, rel=0.005)


@pytest.mark.parametrize("name", list_generators())
def test_every_preset_can_be_built(name: str) -> None:
    with torch.device("meta"):
        generator = build_generator(generator_preset(name))
    if name.startswith("tiny"):
        assert sum(parameter.numel() for parameter in generator.parameters()) < 5e6
    if not name.startswith(("tiny", "test")):
        depth, width = {"b": (12, 768), "l": (24, 1024), "xl": (36, 1280)}[
            name.removesuffix("_1024").split("_")[-1]
        ]
        assert (len(generator.transformer.blocks), generator.classes.weight.shape[1]) == (depth, width)


def test_an_untrained_generator_gives_every_code_the_same_probability() -> None:
    generator = build_generator(generator_preset("test_mergear")).eval()
    codes = torch.randint(0, 64, (2, 16))
    prediction = generator(codes, None, torch.tensor([0, 1]), 9)
    assert [logits.shape for logits in prediction.logits] == [(2, 16, 4), (2, 16, 16)]
    assert all(not logits.any() for logits in prediction.logits)
