"""Channels-last memory gives the numbers of contiguous memory, on plain images too, where PyTorch's own norm loses them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mergevq
from mergevq.discriminator import DiscriminatorConfig, PatchDiscriminator
from mergevq.layers import GroupNorm
from mergevq.training.tokenizer import build_training

SMALLER = {"encoder": {"depth": 2, "res_blocks": 2}, "decoder": {"depth": 1, "res_blocks": 1}}
KEEP = 36


def last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def plain(value: float, batch: int = 1) -> Tensor:
    return torch.full((batch, 3, 128, 128), value)


@pytest.mark.parametrize("ratio", [0, 3, 30, 100, 300, 1000])  # of the mean to the deviation
def test_group_norm_of_channels_last_memory_is_exact_forward_and_backward(ratio: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, 32, 32, generator=generator) + ratio
    towards = torch.randn(2, 64, 32, 32, generator=generator)
    norm = GroupNorm(32, 64, eps=1e-6)
    outputs, gradients = [], []
    for layout, dtype in ((x, torch.float64), (x, torch.float32), (last(x), torch.float32)):
        given, module = layout.to(dtype).detach().requires_grad_(), copy.deepcopy(norm).to(dtype)
        output = module(given)
        output.backward(last(towards).to(dtype))
        outputs.append(output.detach().double())
        assert given.grad is not None
        gradients.append(given.grad.double())
    for exact, contiguous, channels_last in (outputs, gradients):
        assert torch.equal(channels_last, contiguous)
        torch.testing.assert_close(channels_last, exact, rtol=1e-3, atol=1e-3)


def test_group_norm_of_contiguous_memory_is_pytorchs_bit_for_bit() -> None:
    x = torch.randn(2, 64, 9, 7, generator=torch.Generator().manual_seed(0))
    for given in (x, x[..., :1, :1].contiguous(), x.flatten(2), x.flatten(2)[:, :, :5].contiguous()):
        assert torch.equal(GroupNorm(32, 64)(given), F.group_norm(given, 32, torch.ones(64), torch.zeros(64)))
        assert GroupNorm(32, 64)(given).shape == given.shape


def test_no_module_of_ours_uses_pytorchs_own_group_norm() -> None:
    from mergevq.teachers.stand_in import StandInClassifier, StandInConfig

    modules: list[nn.Module] = [mergevq.create(name) for name in ("test_g", "test_gr", "test_r")]
    modules += [
        PatchDiscriminator(DiscriminatorConfig(channels=8, norm="group")),
        StandInClassifier(StandInConfig(classes=2)),
    ]
    for module in modules:
        norms = [part for part in module.modules() if isinstance(part, nn.GroupNorm)]
        assert norms
        assert all(isinstance(norm, GroupNorm) for norm in norms)


@pytest.fixture(scope="module")
def copies() -> tuple[mergevq.MergeVQ, mergevq.MergeVQ, mergevq.MergeVQ]:
    """A tokenizer in float64, in float32, and in float32 with channels-last memory."""
    torch.manual_seed(0)
    exact = mergevq.create("gr_128_d32", SMALLER).eval().double()
    usual = copy.deepcopy(exact).float()
    return exact, usual, copy.deepcopy(usual).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [1.0, -1.0, 0.25])
def test_codes_of_a_plain_image_are_those_of_contiguous_memory(value: float, copies: Any) -> None:
    exact, usual, there = copies
    with torch.no_grad():
        expected = exact.encode(plain(value).double(), KEEP)
        contiguous = usual.encode(plain(value), KEEP)
        found = there.encode(last(plain(value)), KEEP)
        decoded = there.decode(found)
        torch.testing.assert_close(found.latents.double(), expected.latents, rtol=0, atol=1e-4)
        torch.testing.assert_close(decoded.double(), exact.decode(expected), rtol=0, atol=1e-3)
    assert torch.equal(found.indices, contiguous.indices)
    assert torch.equal(found.indices, expected.indices)


@pytest.mark.slow
def test_losses_and_gradients_on_plain_images_are_those_of_contiguous_memory() -> None:
    terms = {"adversarial": {"kind": "patch", "discriminator": {"channels": 8, "norm": "group"}}}
    torch.manual_seed(0)
    made = build_training(terms, mergevq.create("gr_128_d32", SMALLER))
    images = plain(1.0)
    found = []
    for dtype, layout in (
        (torch.float64, torch.contiguous_format),
        (torch.float32, torch.channels_last),
    ):
        training = copy.deepcopy(made).to(dtype).to(memory_format=layout)
        batch = {"image": images.to(dtype).contiguous(memory_format=layout), "label": torch.tensor([0])}
        carry: dict[str, Tensor] = {}
        losses: dict[str, Tensor] = {}
        for phase in training.phases.values():
            output = phase(batch, carry, keep=KEEP, step=0)
            output.total.backward()
            carry, losses = output.carry, losses | output.losses
        gradients = [p.grad.double().flatten() for p in training.parameters() if p.grad is not None]
        found.append((losses, torch.cat(gradients)))
    (losses, gradients), (there, there_gradients) = found
    for name, value in losses.items():
        torch.testing.assert_close(there[name], value, rtol=1e-3, atol=1e-4, msg=name)
    off = (there_gradients - gradients).norm() / gradients.norm()
    assert off < 1e-3
