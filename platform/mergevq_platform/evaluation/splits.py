"""The splits of an evaluation as fixed batches; images that cannot be decoded are left out, and counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from mergevq_platform.data import BadImage, EvalBatches

AnyResult = TypeVar("AnyResult")


@dataclass
class EvaluatedSplits:
    """The batches of the parts of an evaluation, such as `train` and `test`."""

    batches: dict[str, EvalBatches]
    say: Callable[[str], None] = lambda text: None
    bad: dict[str, dict[int, str]] = field(default_factory=dict)  # split -> row left out -> why

    def over(self, part: str, once: Callable[[EvalBatches], AnyResult]) -> AnyResult:
        """The result of `once` for a part's batches; where an image cannot be decoded, for the batches without all such images.

        Raises `InputError` where no image is left.
        """
        try:
            return once(self.batches[part])
        except BadImage:
            self._leave_out_bad(part)
            return once(self.batches[part])

    @property
    def left_out(self) -> dict[str, list[int]]:
        """The rows that were left out, by split."""
        return {split: sorted(rows) for split, rows in self.bad.items()}

    def _leave_out_bad(self, part: str) -> None:
        batches = self.batches[part]
        found, split = batches.bad_rows(), batches.dataset.split
        self.batches[part] = batches.without(found)
        new = {row: why for row, why in found.items() if row not in self.bad.get(split, {})}
        self.bad[split] = self.bad.get(split, {}) | found
        if new:
            reason = next(iter(new.values()))
            self.say(f"{len(new)} image{'s' * (len(new) > 1)} of '{split}' left out: {reason}")
