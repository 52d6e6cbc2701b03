"""LFQ's entropies are exact, its indices little-endian, its average taken over all ranks."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import logsigmoid

import ranks
from mergevq.quantize import (
    FSQ,
    LFQ,
    FSQConfig,
    LFQConfig,
    average_code,
    average_over_ranks,
    bit_entropies,
    half_codes,
)


@pytest.mark.parametrize("scale", [4.0, 40.0, 400.0])
def test_no_probability_is_so_small_that_a_cpu_is_slow_and_the_entropy_does_not_change(scale: float) -> None:
    logits = (scale * torch.randn(32, 10, generator=torch.Generator().manual_seed(0))).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    for part in (half_codes(logits[:, :5]), half_codes(logits[:, 5:]), average_code(logits)):
        assert part.min() >= torch.finfo(torch.float32).tiny, "a denormal number"
    bits = (torch.arange(2**10)[:, None] >> torch.arange(10) & 1).double()
    p = (logsigmoid(exact) @ bits.T + logsigmoid(-exact) @ (1 - bits).T).exp()  # without a floor
    entropies, gradients = [], []
    for average, given in ((average_code(logits), logits), (p.mean(0), exact)):
        entropies.append(-(average * (average + 1e-5).log()).sum())
        gradients.append(torch.autograd.grad(entropies[-1], given)[0].double())
    torch.testing.assert_close(entropies[0].double(), entropies[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6 * float(gradients[1].abs().max()))


@pytest.mark.parametrize("bits", [4, 9, 10])
def test_factorised_entropies_and_gradients_equal_the_materialised_softmax(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    z = (0.02 * torch.randn(64, bits, generator=generator, dtype=torch.float64)).requires_grad_()
    codebook = ((torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1) * 2 - 1).double()
    p = (2 * z @ codebook.T / 0.01).softmax(-1)
    mean = p.mean(0)
    wanted = (-(p * p.log()).sum(-1).mean(), -(mean * mean.log()).sum())
    (wanted_grad,) = torch.autograd.grad(wanted[0] - wanted[1], z)

    logits = 400 * z
    sample = bit_entropies(logits).sum(-1).mean()
    average = average_code(logits)
    ours = (sample, -(average * average.log()).sum())
    (grad,) = torch.autograd.grad(ours[0] - ours[1], z)
    for mine, theirs in zip((*ours, grad), (*wanted, wanted_grad), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)

    losses = LFQ(LFQConfig(bits=bits)).losses(z.detach().float()[None])
    assert losses["sample_entropy"].item() == pytest.approx(wanted[0].item(), rel=1e-4)
    assert losses["codebook_entropy"].item() == pytest.approx(wanted[1].item(), rel=1e-4)


def test_bit_j_of_an_index_is_channel_j_and_zero_counts_as_minus_one() -> None:
    quantizer = LFQ(LFQConfig(bits=4))
    z = torch.tensor([[[1.0, -1.0, 0.0, 2.0]]])
    quantized = quantizer.quantize(z)
    assert quantized.indices.tolist() == [[0b1001]]
    assert quantized.codes.tolist() == [[[1.0, -1.0, -1.0, 1.0]]]
    assert torch.equal(quantizer.codes(quantized.indices), quantized.codes)


def test_all_indices_round_trip() -> None:
    for quantizer, size in ((LFQ(LFQConfig(bits=7)), 128), (FSQ(FSQConfig(levels=(3, 4, 5))), 60)):
        indices = torch.arange(size)[None]
        assert torch.equal(quantizer.indices(quantizer.codes(indices)), indices)


def test_gradients_pass_straight_through() -> None:
    z = torch.randn(1, 3, 5).requires_grad_()
    LFQ(LFQConfig(bits=5)).quantize(z).codes.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantizer", [LFQ(LFQConfig(bits=6)), FSQ(FSQConfig(levels=(3, 4, 5, 8, 2, 7)))])
def test_codes_are_exactly_those_of_their_indices_in_every_precision(
    quantizer: LFQ | FSQ, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-6, 0.1, 1.0, 30.0, 1e4):
        latents = (torch.randn(4, 500, 6, generator=generator) * scale).to(dtype).requires_grad_()
        quantized = quantizer.quantize(latents)
        assert torch.equal(quantized.codes, quantizer.codes(quantized.indices).to(dtype))
        assert quantized.codes.requires_grad


def _rank(rank: int, port: int, results: object) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    value = torch.tensor(1.0 if rank == 0 else 5.0, requires_grad=True)
    mean = average_over_ranks(value, 3 if rank == 0 else 1)
    (mean**2).backward()
    results[rank] = (mean.item(), value.grad.item())  # type: ignore[index]
    dist.destroy_process_group()


def test_two_ranks_that_hold_three_ones_and_one_five_both_end_with_two() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        ranks.run(_rank, (port, results), 2)
        # Each rank's gradient is d(mean^2)/d(mean) = 4; weighed by the counts, the ranks make the global gradient.
        assert dict(results) == {0: (2.0, 4.0), 1: (2.0, 4.0)}


def test_the_entropy_of_certain_codes_has_finite_gradients():
    """Latents far from zero leave most of the 2^18 codes with a probability of exactly zero."""
    latents = (2 * torch.randn(2, 8, 18, generator=torch.Generator().manual_seed(0))).requires_grad_()
    losses = LFQ(LFQConfig(bits=18)).losses(latents)
    (losses["sample_entropy"] - losses["codebook_entropy"]).backward()
    assert latents.grad.isfinite().all()
