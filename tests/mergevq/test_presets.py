"""Every preset: the published sizes, and that all of it trains."""

from __future__ import annotations

import pytest
import torch

import mergevq
from mergevq.config import merged, parse, to_tree
from mergevq.errors import InputError
from mergevq.generation.presets import TEST_PRESETS as TEST_GENERATORS
from mergevq.generation.presets import generator_preset, list_generators
from mergevq.presets import TEST_PRESETS, parameter_counts
from mergevq.tokenizer import MergeVQ, TokenizerConfig

# Millions of parameters: encoder without head (d32: with it), decoder. Table A1 as run.
PUBLISHED = {
    "g_256_d64": (62.33, 82.85),
    "gr_256_d64": (62.67, 83.37),
    "r_256_vitb": (85.68, 83.37),
    "g_256_d32": (40.0, 51.4),
    "gr_256_d32": (42.7, 52.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        tokenizer = MergeVQ(mergevq.preset(name))
        counts = parameter_counts(tokenizer)
    encoder, decoder = PUBLISHED[name]
    measured = counts["encoder"] + (counts["head"] if "d32" in name else 0)
    assert measured / 1e6 == pytest.approx(encoder, rel=5e-3)
    assert counts["decoder"] / 1e6 == pytest.approx(decoder, rel=5e-3)
    assert (counts["recovery"] - tokenizer.recovery.queries.numel()) / 1e6 == pytest.approx(7.5, abs=0.2)


def small(name: str) -> TokenizerConfig:
    """A preset with its depth and resolution shrunk, its widths and kinds as they are."""
    config = mergevq.preset(name)
    cell = config.encoder.reduction
    shrunk = {"encoder": {"depth": 2}, "decoder": {"depth": 1}, "image_size": 4 * cell, "keep": 9}
    if config.encoder.kind == "hybrid":
        shrunk["encoder"] |= {"res_blocks": 1}
        shrunk["decoder"] |= {"res_blocks": 1}
    return parse(TokenizerConfig, merged(to_tree(config), shrunk))


@pytest.mark.parametrize("name", [*mergevq.list_presets(), *TEST_PRESETS])
def test_every_trainable_parameter_of_every_preset_gets_a_finite_gradient(name: str) -> None:
    torch.manual_seed(0)
    tokenizer = MergeVQ(small(name))
    size = tokenizer.config.image_size
    result = tokenizer(torch.rand(2, 3, size, size) * 2 - 1)
    assert result.reconstruction.shape == (2, 3, size, size)
    terms = [result.reconstruction.square().mean(), result.encoded.latents.square().mean()]
    terms += [result.recovery_logits.logsumexp(-1).mean(), result.head.square().mean()]
    sum(terms).backward()
    for parameter_name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"no preset 'gr_512': .*gr_256_d64") as refusal:
        mergevq.create("gr_512")
    assert "test_" not in str(refusal.value)


def test_presets_of_tests_are_created_but_not_listed() -> None:
    for listed, tests in ((mergevq.list_presets(), TEST_PRESETS), (list_generators(), TEST_GENERATORS)):
        assert not [name for name in listed if name.startswith("test_")]
        assert all(name.startswith("test_") for name in tests)
    assert mergevq.create("test_r").config == mergevq.preset("test_r")
    assert generator_preset("test_mergear") == TEST_GENERATORS["test_mergear"]


def test_fields_are_overridden_and_checked() -> None:
    assert mergevq.create("test_gr", {"encoder": {"depth": 3}}).config.encoder.depth == 3
    assert mergevq.create("test_gr", keep=4).config.keep == 4
    assert len(mergevq.create("test_gr", **{"encoder.depth": 3}).encoder.blocks) == 3
    with pytest.raises(InputError, match=r"unknown key 'encoder\.deep': did you mean 'depth'"):
        mergevq.create("test_gr", {"encoder": {"deep": 3}})
