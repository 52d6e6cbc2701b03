"""The endless stream of training codes of one rank; the rows of a step are a pure function of (seed, step).

The kept count of a step is given by `keep(step)`, the same on all ranks; the rows come from the row groups of that count, in
the order of `SampleOrder`. Where every image is stored at every count, the orders of all counts are one, so that an epoch
shows each view once whatever was drawn. Where every image has its own count, there is one order of all: a micro-batch mixes
counts and is padded to the longest of its own, which leaves the rows of a step to (seed, step) alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import numpy as np
import torch

from mergevq.errors import InputError
from mergevq_platform.codes.codeset import Codes, CodeSet, fit_width
from mergevq_platform.data import Batch, BatchPartition, SampleOrder
from mergevq_platform.data.loader import ReplacedImage
from mergevq_platform.data.order import WINDOW_BLOCKS
from mergevq_platform.data.stream import STEPS_AHEAD


class CodeStream:
    """The micro-batches of one rank, step by step, from `start_step` on, without end.

    Iterating yields for each optimizer step the list of this rank's micro-batches: `indices` (b, K), `assignment` (b, N) and
    `label` (b,), all int64; one for each pass of `partition`, in which ranks may differ in b by one. Of a ragged set (`keep` is
    None) also `count` (b,), the indices being padded with -1 to the most of these.
    """

    bad_images = 0  # images that could not be decoded were left out when the set was made
    known_bad: Collection[int] = ()
    new_bad: Sequence[ReplacedImage] = ()

    def __init__(
        self,
        codes: CodeSet,
        keep: Callable[[int], int] | None,
        *,
        partition: BatchPartition,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        window_blocks: int = WINDOW_BLOCKS,
    ) -> None:
        assert world_size <= partition.workers
        self.codes, self.keep, self.seed, self.start_step = codes, keep, seed, start_step
        self.global_batch, self.window_blocks = partition.global_batch, window_blocks
        self.passes = [partition.positions(number, rank, world_size) for number in range(partition.passes)]
        self._orders: dict[int | None, tuple[list[int], SampleOrder]] = {}

    def __iter__(self) -> Iterator[list[Batch]]:
        with ThreadPoolExecutor(1, thread_name_prefix="mergevq-codes") as reader:
            ahead = deque(reader.submit(self.step, self.start_step + offset) for offset in range(STEPS_AHEAD))
            for step in count(self.start_step + STEPS_AHEAD):
                ahead.append(reader.submit(self.step, step))
                yield ahead.popleft().result()

    def __enter__(self) -> CodeStream:
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: the reading thread ends with the iteration."""

    def share(self, bad: Sequence[ReplacedImage]) -> None:
        """Does nothing: codes are never bad."""

    def step(self, step: int) -> list[Batch]:
        """The micro-batches of an optimizer step."""
        groups, order = self._order(None if self.keep is None else self.keep(step))
        epoch, step_in_epoch = order.position(step)
        batches = []
        for runs in self.passes:
            rows = np.concatenate([order.batch(epoch, step_in_epoch, start, stop) for start, stop in runs])
            batches.append(batch_of(self._rows(groups, order, rows), ragged=self.keep is None))
        return batches

    def _order(self, keep: int | None) -> tuple[list[int], SampleOrder]:
        if keep not in self._orders:
            groups = list(range(len(self.codes.places))) if keep is None else self.codes.groups_of(keep)
            sizes = [self.codes.group_rows(group) for group in groups]
            if sum(sizes) < self.global_batch:
                at = "" if keep is None else f" at {keep} kept tokens"
                raise InputError(
                    f"{self.codes.path} has {sum(sizes)} views{at}, fewer than global_batch "
                    f"{self.global_batch}: lower global_batch, or tokenize with more --crops"
                )
            self._orders[keep] = groups, SampleOrder(sizes, self.global_batch, self.seed, self.window_blocks)
        return self._orders[keep]

    def _rows(self, groups: list[int], order: SampleOrder, rows: np.ndarray) -> Codes:
        within = np.searchsorted(order.starts, rows, side="right") - 1
        parts: list[Codes] = []
        for index in np.unique(within):
            codes = self.codes.group(groups[index])
            chosen = rows[within == index] - order.starts[index]
            parts.append(Codes(*(array[chosen] for array in codes)))
        width = max(int(part.keep.max()) for part in parts)
        parts = [part._replace(indices=fit_width(part.indices, width)) for part in parts]
        joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
        # Back into the order of the step: groups were read one after the other.
        back = np.argsort(np.argsort(within, kind="stable"), kind="stable")
        return Codes(*(array[back] for array in joined))


def batch_of(codes: Codes, *, ragged: bool) -> Batch:
    """Codes as the tensors of a batch; `count` among them where they are of a ragged set."""
    names = {"indices": codes.indices, "assignment": codes.assignment, "label": codes.label}
    if ragged:
        names["count"] = codes.keep
    return {name: torch.from_numpy(array) for name, array in names.items()}
