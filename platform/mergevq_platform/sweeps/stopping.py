"""Early stopping of a sweep's trials: on the first objective, or on all of them."""

from __future__ import annotations

from dataclasses import dataclass

from mergevq.errors import InputError


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """ASHA (Li et al. 2020) on the first objective, measured on few images every `every_steps` optimizer steps.

    A trial goes on past `every_steps * factor**k` steps if it is among the best 1/factor of those that came so far.
    """

    every_steps: int
    factor: int = 2


@dataclass(frozen=True, kw_only=True)
class FrontStopping:
    """ASHA's rungs, on the front of all objectives: non-dominated rank, then hypervolume (`front_order`).

    A choice goes on past `every_steps * factor**k` steps where none that came so far beats it in every objective, or where it
    is among the best 1/factor of them. Its seeds are judged by their mean. Nothing is stopped for others before `min_trials`
    choices came to a rung. A trial of which an objective is not finite is stopped at once.
    """

    every_steps: int
    factor: float = 2.0
    min_trials: int = 1

    def __post_init__(self) -> None:
        for name, low in (("every_steps", 1), ("min_trials", 1)):
            if getattr(self, name) < low:
                raise InputError(f"stopping.{name} is {getattr(self, name)}: give at least {low}")
        if not self.factor > 1:
            raise InputError(f"stopping.factor is {self.factor:g}: give more than 1")

    def rungs(self, steps: int, first: int = 0) -> tuple[int, ...]:
        """The optimizer steps below `steps` at which trials are compared, all multiples of `every_steps`.

        Trials that share the first `first` steps are compared by what comes after them. Raises `InputError` where there is none.
        """
        found: list[int] = []
        position, shared = 1.0, first // self.every_steps
        while (step := self.every_steps * (shared + round(position))) < steps:
            if step not in found:
                found.append(step)
            position *= self.factor
        if not found:
            after = f", the first {first} of them its trunk's" if first else ""
            raise InputError(
                f"stopping.every_steps is {self.every_steps}, but a trial has {steps} steps{after}: give less, so that trials are compared"
            )
        return tuple(found)
