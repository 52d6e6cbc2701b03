"""AdamW in one kernel, right and as fast in every memory layout."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor


class FusedAdamW(torch.optim.AdamW):
    """`torch.optim.AdamW(fused=True)`, its numbers and its state.

    On a CPU PyTorch's fused step (2.14) walks through parameter, gradient and moments in the order of their memory. Where
    their layouts differ, as of a channels-last training that goes on from contiguous moments, it silently mixes up their
    values; and it copies all that is channels-last before. Here moments have the layout of their parameter, whatever was
    loaded, and a step sees both as contiguous memory.
    """

    # PyTorch wraps these for its compiler, which it imports at the first call: a second, and 160 MB of every worker.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(self, groups: Any, **settings: Any) -> None:
        super().__init__(groups, fused=True, **settings)

    def load_state_dict(self, state_dict: Any) -> None:
        """As PyTorch's; what was stored in another memory layout is brought into that of its parameter."""
        inspect.unwrap(torch.optim.Optimizer.load_state_dict)(self, state_dict)
        for parameter in self.state:
            self._align(parameter)

    def step(self, closure: Any = None) -> Any:
        """As PyTorch's."""
        plain = closure is None and not any(
            getattr(self, name, None) is not None for name in ("grad_scale", "found_inf")
        )
        for group in self.param_groups:
            plain = plain and not any(
                group[name] for name in ("amsgrad", "maximize", "capturable", "differentiable")
            )
            for parameter in group["params"]:
                if parameter.device.type == "cpu":
                    self._align(parameter)
                else:
                    plain = False
        if not plain:
            return super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                self._update(group)
        return None

    def _align(self, parameter: Tensor) -> None:
        """Bring gradient and moments into the parameter's layout, where they have another."""
        gradient = parameter.grad
        if gradient is not None and _differ(gradient, parameter):
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        for name, value in self.state.get(parameter, {}).items():
            if _differ(value, parameter):
                self.state[parameter][name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def _update(self, group: dict[str, Any]) -> None:
        """The fused step of one group, as PyTorch makes it."""
        trained = [p for p in group["params"] if p.grad is not None]
        if not trained:
            return
        if any(p.grad is not None and p.grad.layout != torch.strided for p in trained):
            raise RuntimeError("AdamW does not support sparse gradients")
        for parameter in trained:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in trained]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [_in_memory_order(parameter.detach()) for parameter in trained],
            [_in_memory_order(parameter.grad) for parameter in trained if parameter.grad is not None],
            [_in_memory_order(state["exp_avg"]) for state in states],
            [_in_memory_order(state["exp_avg_sq"]) for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def _differ(x: Tensor, like: Tensor) -> bool:
    """Whether values of one shape lie in another order in memory; the strides of single rows mean nothing."""
    if x.layout != torch.strided or x.shape != like.shape or x.stride() == like.stride():
        return False
    return any(size > 1 and a != b for size, a, b in zip(x.shape, x.stride(), like.stride(), strict=True))


def _in_memory_order(x: Tensor) -> Tensor:
    """A view of dense memory with its axes in the order of their strides: contiguous."""
    if x.is_contiguous():
        return x
    strides = x.stride()
    return x.permute(sorted(range(x.ndim), key=lambda axis: -strides[axis]))
