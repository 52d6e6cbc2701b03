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
        for parameter, state in self.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)

    def step(self, closure: Any = None) -> Any:
        """As PyTorch's."""
        scaled = getattr(self, "grad_scale", None) is not None or getattr(self, "found_inf", None) is not None
        on_cpu = all(p.device.type == "cpu" for group in self.param_groups for p in group["params"])
        if closure is not None or scaled or not on_cpu:
            return super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                self._update(group)
        return None

    def _update(self, group: dict[str, Any]) -> None:
        lists: list[list[Tensor]] = [[] for _ in range(6)]
        self._init_group(group, *lists)
        parameters, gradients, means, squares, _, steps = lists
        if not parameters:
            return
        for at, parameter in enumerate(parameters):
            if gradients[at].stride() != parameter.stride():
                gradients[at] = torch.empty_like(parameter).copy_(gradients[at])
            if not parameter.is_contiguous():
                for values in (parameters, gradients, means, squares):
                    values[at] = _in_memory_order(values[at])
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            *(parameters, gradients, means, squares, [], steps),
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def _in_memory_order(x: Tensor) -> Tensor:
    """A view of dense memory with its axes in the order of their strides."""
    strides = x.stride()
    return x.permute(sorted(range(x.ndim), key=lambda axis: -strides[axis]))
