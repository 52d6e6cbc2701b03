"""AdamW's numbers in every memory layout, where PyTorch's own fused step on a CPU mixes them up."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from mergevq_platform.adamw import FusedAdamW

LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
SETTINGS = {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.05}


def values(seed: int) -> Tensor:
    return torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(seed))


def parameter(layout: str) -> Tensor:
    return values(0).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()


def trained(optimizer: torch.optim.Optimizer, weight: Tensor, layout: str, steps: int = 3) -> Tensor:
    for step in range(steps):
        weight.grad = values(step + 1).contiguous(memory_format=LAYOUTS[layout])
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(("own", "gradient"), list(itertools.product(LAYOUTS, LAYOUTS)))
def test_a_step_is_pytorchs_whatever_the_layouts(own: str, gradient: str) -> None:
    weight, wanted = parameter(own), parameter("contiguous")
    optimizer = FusedAdamW([weight], **SETTINGS)
    expected = trained(torch.optim.AdamW([wanted], fused=True, **SETTINGS), wanted, "contiguous")
    assert torch.equal(trained(optimizer, weight, gradient), expected)
    assert weight.stride() == parameter(own).stride(), "the layout stays"
    assert optimizer.state[weight]["step"] == 3


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(LAYOUTS, 2)))
def test_a_training_goes_on_in_another_layout_as_if_it_were_the_same(before: str, after: str) -> None:
    first, second, undisturbed = parameter(before), parameter(after), parameter(after)
    stopped = FusedAdamW([first], **SETTINGS)
    trained(stopped, first, before)
    resumed = FusedAdamW([second], **SETTINGS)
    resumed.load_state_dict(stopped.state_dict())
    with torch.no_grad():
        second.copy_(first)
    whole = FusedAdamW([undisturbed], **SETTINGS)
    trained(whole, undisturbed, after)
    assert torch.equal(trained(resumed, second, after), trained(whole, undisturbed, after))


def test_parameters_without_a_gradient_and_vectors_are_pytorchs_too() -> None:
    results = []
    for build in (FusedAdamW, lambda groups, **settings: torch.optim.AdamW(groups, fused=True, **settings)):
        vector, unused = values(3)[0, 0, 0].clone().requires_grad_(), torch.zeros(2, requires_grad=True)
        optimizer = build([{"params": [vector, unused], "lr": 0.5}], **SETTINGS)
        vector.grad = torch.ones(3)
        optimizer.step()
        results.append((vector.detach(), optimizer.state_dict()["state"].keys()))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] == {0}


def test_a_training_does_not_import_pytorchs_compiler() -> None:
    code = (
        "import sys, torch; from mergevq_platform.adamw import FusedAdamW; p = torch.zeros(3, requires_grad=True);"
        "o = FusedAdamW([p], lr=0.1); p.grad = torch.ones(3); o.step(); o.zero_grad(); o.load_state_dict(o.state_dict());"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
