"""Accumulators of metrics: float64 sums that stay on their device and are pickled as CPU tensors."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor


class Accumulator:
    """Running sums, which subclasses name. Attributes that are tensors are pickled as CPU tensors."""

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value.detach().cpu() if isinstance(value, Tensor) else value
            for name, value in vars(self).items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def cpu_copy(self) -> Self:
        """A copy whose tensors lie on the CPU and share no memory with these."""
        copy = type(self).__new__(type(self))
        state = self.__getstate__()
        copy.__setstate__(
            {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
        )
        return copy


def float64(values: Tensor) -> Tensor:
    """`values` in float64 without gradient, on their device, or on the CPU where the device has no float64 (MPS)."""
    values = values.detach()
    return values.cpu().double() if values.device.type == "mps" else values.double()


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two running sums, None being empty; on `b`'s device where neither is."""
    if a is None or b is None:
        return b if a is None else a
    return a.to(b.device) + b


def total(value: Tensor | None) -> float:
    """A scalar running sum as a number; None is 0."""
    return 0.0 if value is None else float(value)


def percent(part: Tensor | float, whole: float) -> float:
    """`part` of `whole` in percent; NaN where `whole` is 0."""
    return 100 * float(part) / whole if whole else float("nan")
