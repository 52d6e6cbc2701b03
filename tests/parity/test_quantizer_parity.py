"""Against the published LFQ and against vector-quantize-pytorch's LFQ and FSQ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergevq.quantize import FSQ, LFQ, FSQConfig, LFQConfig

REFERENCE = Path(__file__).parent / "reference"
CASES = json.loads((REFERENCE / "lfq.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['bits']}bits")
def test_lfq_equals_the_releases(case: dict) -> None:
    data = load_file(REFERENCE / "lfq.safetensors")
    z = data[f"{case['id']}.z"][None].requires_grad_()
    # The release adds 1e-5 inside the logarithm of the average; ours is exact unless told to do the same.
    quantizer = LFQ(LFQConfig(bits=case["bits"], temperature=case["temperature"], epsilon=1e-5))
    assert torch.equal(quantizer.quantize(z).indices[0], data[f"{case['id']}.index"].long())
    losses = quantizer.losses(z)
    (losses["sample_entropy"] - losses["codebook_entropy"]).backward()
    for name in ("sample_entropy", "codebook_entropy", "commitment"):
        assert losses[name].item() == pytest.approx(case[name], rel=2e-5), name
    wanted = data[f"{case['id']}.grad"]
    torch.testing.assert_close(z.grad[0], wanted, atol=1e-3 * wanted.abs().max().item(), rtol=1e-3)


def test_lfq_equals_vector_quantize_pytorch_up_to_its_bit_order() -> None:
    theirs = pytest.importorskip("vector_quantize_pytorch").LFQ(codebook_size=2**8, dim=8).eval()
    z = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(0))
    quantized, indices, _ = theirs(z)
    ours = LFQ(LFQConfig(bits=8)).quantize(z)
    torch.testing.assert_close(ours.codes, quantized)
    flipped = LFQ(LFQConfig(bits=8)).quantize(z.flip(-1))
    assert torch.equal(flipped.indices, indices.long())


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 5, 5, 5), (3, 4)])
def test_fsq_equals_vector_quantize_pytorch(levels: tuple[int, ...]) -> None:
    theirs = pytest.importorskip("vector_quantize_pytorch").FSQ(levels=list(levels))
    z = 2 * torch.randn(2, 16, len(levels), generator=torch.Generator().manual_seed(0))
    codes, indices = theirs(z)
    ours = FSQ(FSQConfig(levels=levels))
    quantized = ours.quantize(z)
    torch.testing.assert_close(quantized.codes, codes, atol=1e-6, rtol=0)
    assert torch.equal(quantized.indices, indices.long())
    torch.testing.assert_close(
        ours.codes(quantized.indices), theirs.indices_to_codes(indices), atol=1e-6, rtol=0
    )
