"""The partition of a step's images: the global batch is cut into passes, and each pass is divided among the ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from mergevq.errors import InputError


@dataclass(frozen=True)
class BatchPartition:
    """The cut of `global_batch` positions into `passes` forward passes, for at most `workers` ranks.

    A pass holds the same positions however many ranks share it, so that a loss which averages over a pass (the codebook
    entropy) does not depend on their number. All ranks take part in every pass, with images whose counts differ by
    one at most. A rank's positions are neighbours where `workers` ranks share: they lie in few lanes of the order.
    """

    global_batch: int
    passes: int
    workers: int

    @classmethod
    def of(
        cls, global_batch: int, micro_batch: int, workers: int, least: int | None = None
    ) -> BatchPartition:
        """As few passes as leave every one of `least` ranks (by default `workers`) `micro_batch` images at most.

        Raises `InputError` where a pass would hold fewer images than there are workers.
        """
        least = least or workers
        passes = -(-global_batch // (micro_batch * least))
        if global_batch // passes < workers:
            enough = next(
                m
                for m in range(micro_batch, global_batch + 1)
                if global_batch // -(-global_batch // (m * least)) >= workers
            )
            raise InputError(
                f"micro_batch {micro_batch} cuts global_batch {global_batch} into {passes} passes, too few images in each for "
                f"{workers} workers: raise micro_batch to {enough}"
            )
        return cls(global_batch, passes, workers)

    @cached_property
    def _positions(self) -> list[np.ndarray]:
        """The positions of each pass, rising: from every worker's block of the batch the next few."""
        edges = np.arange(self.workers + 1) * self.global_batch // self.workers
        positions = np.arange(self.global_batch)
        block = np.searchsorted(edges, positions, side="right") - 1
        by_place = np.lexsort((block, positions - edges[block]))
        cuts = np.arange(self.passes + 1) * self.global_batch // self.passes
        return [np.sort(by_place[a:b]) for a, b in pairwise(cuts)]

    def positions(
        self, index: int, rank: int, world_size: int, part: int = 0, parts: int = 1
    ) -> list[tuple[int, int]]:
        """Runs (start, stop) of a rank's positions in a pass; of them the `part`th of `parts` neighbouring pieces."""
        mine = _piece(_piece(self._positions[index], rank, world_size), part, parts)
        if not len(mine):
            return []
        breaks = np.flatnonzero(np.diff(mine) != 1) + 1
        return [(int(run[0]), int(run[-1]) + 1) for run in np.split(mine, breaks)]


def _piece(array: np.ndarray, index: int, count: int) -> np.ndarray:
    return array[index * len(array) // count : (index + 1) * len(array) // count]
