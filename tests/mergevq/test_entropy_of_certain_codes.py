import torch

from mergevq.quantize import LFQ, LFQConfig


def test_the_entropy_of_certain_codes_has_finite_gradients():
    """Latents far from zero leave most of the 2^18 codes with a probability of exactly zero."""
    latents = (2 * torch.randn(2, 8, 18, generator=torch.Generator().manual_seed(0))).requires_grad_()
    losses = LFQ(LFQConfig(bits=18)).losses(latents)
    (losses["sample_entropy"] - losses["codebook_entropy"]).backward()
    assert latents.grad.isfinite().all()
