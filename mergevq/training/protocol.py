"""The interface of a training for the loop: phases (micro-batch -> loss), parameter groups, resumable state."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from mergevq.errors import InputError
from mergevq.pretrained import FrozenModule


@dataclass
class Output:
    """Losses of one phase on one micro-batch.

    `total`: the scalar to run backward from. `losses`: named detached float32 scalars of this rank, for
    reporting. `carry`: detached tensors that the next phase reads.
    """

    total: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    carry: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ParameterGroup:
    """Parameters that an optimizer treats alike: at `rate_factor` times the learning rate, with or without weight decay."""

    parameters: list[nn.Parameter]
    decays: bool
    rate_factor: float = 1.0


def decayed_and_not(parameters: Iterable[nn.Parameter]) -> list[ParameterGroup]:
    """The trainable ones in two groups: weights of two and more dimensions decay, biases, norms and scales do not."""
    trainable = [p for p in parameters if p.requires_grad]
    return [
        ParameterGroup([p for p in trainable if p.ndim >= 2], decays=True),
        ParameterGroup([p for p in trainable if p.ndim < 2], decays=False),
    ]


class Training(nn.Module):
    """A model with its losses, to be driven by a loop that knows devices, optimizers and data.

    `phases` run in their order on every micro-batch: `phase(batch, carry, keep=K, step=step) -> Output`,
    where `step` counts optimizer steps from 0 and `carry` holds what the earlier phases of the micro-batch
    left. Every trainable parameter belongs to exactly one phase, and takes part in that phase's loss; the
    loop wraps each phase in DistributedDataParallel and gives each its own optimizer. A loop calls each phase
    under autocast if it likes.
    """

    phases: nn.ModuleDict

    def model(self) -> nn.Module:
        """The module whose moving average is kept and which is exported."""
        raise NotImplementedError

    def export(self, model: nn.Module, directory: str | Path) -> None:
        """Write `model`, which is `model()` or its average, into `directory` for the library to load."""
        raise NotImplementedError

    def parameter_groups(self, phase: str) -> list[ParameterGroup]:
        """The optimizer's parameter groups of a phase; each trainable parameter is in one."""
        return decayed_and_not(self.phases[phase].parameters())

    def rests(self, phase: str, step: int) -> bool:
        """Whether optimizer step `step` leaves the parameters of a phase unchanged, weight decay included."""
        del phase, step
        return False

    def variant(self, step: int) -> Hashable | None:
        """What the phases take from the number `step` of an optimizer step: where two steps agree in it, and in shapes and
        kept count, a recording of one as a CUDA graph is the other's. None: the phases cannot be recorded.
        """
        del step
        return None

    def notes(self) -> list[str]:
        """Remarks on this training that its configuration does not tell, a sentence each."""
        return []

    def after_step(self, step: int) -> None:
        """Update moving averages and teachers; called on every rank after the optimizers' step `step`."""

    def resume_state(self) -> dict[str, Tensor]:
        """The trained and averaged tensors by name, not copied: `state_dict` without frozen modules."""
        frozen = tuple(
            f"{name}." for name, module in self.named_modules() if isinstance(module, FrozenModule)
        )
        return {name: value for name, value in self.state_dict().items() if not name.startswith(frozen)}

    @torch.no_grad()
    def load_resume_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `resume_state`; raises `InputError`, before any change, unless names and shapes agree."""
        own = self.resume_state()
        missing = sorted(own.keys() - state.keys())
        unknown = sorted(state.keys() - own.keys())
        shapes = [name for name in own if name in state and own[name].shape != state[name].shape]
        problems = [("lacks", missing), ("has unknown", unknown), ("has other shapes for", shapes)]
        text = "; ".join(
            f"{what} {', '.join(names[:3])} ({len(names)} in all)" for what, names in problems if names
        )
        if text:
            raise InputError(f"the checkpoint does not belong to this recipe: it {text}")
        for name, value in own.items():
            value.copy_(state[name])
