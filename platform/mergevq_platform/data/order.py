"""The samples of a step: a pure function of (seed, epoch, step) for a fixed global batch, on any number of workers.

The row groups of an epoch are put in a seeded order and laid end to end. That line is cut into *lanes*, and every lane
feeds its own few positions of each global batch; inside a lane, windows of whole row groups are shuffled. A rank owns
neighbouring positions, so it reads the row groups of its lanes and hardly any other, while each batch still mixes
images from all lanes: all over the data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mergevq.errors import InputError
from mergevq.rng import Stream, permutation

WINDOW_BLOCKS = 16
ROWS_IN_FLIGHT = 16_384  # bounds what a single worker holds in memory: encoded images of all lanes' windows
GROUPS_PER_LANE = 4  # a lane shares the row groups at its two ends: at most 1 in 4 is read twice for that


class SampleOrder:
    """The order of a dataset whose row groups hold `row_group_sizes` rows, for global batches of `global_batch`.

    `window_blocks` row groups are shuffled together at any time (more where there are more lanes than that). The rows
    that do not fill a last batch are left out, other ones in every epoch.
    """

    def __init__(
        self,
        row_group_sizes: Sequence[int] | np.ndarray,
        global_batch: int,
        seed: int = 0,
        window_blocks: int = WINDOW_BLOCKS,
    ) -> None:
        self.sizes = np.asarray(row_group_sizes, dtype=np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.global_batch, self.seed = global_batch, seed
        self.rows = int(self.sizes.sum())
        self.steps_per_epoch = self.rows // global_batch
        if not self.steps_per_epoch:
            raise InputError(
                f"the data has {self.rows} images, fewer than global_batch {global_batch}: lower global_batch"
            )
        self.lanes = _lanes(self.sizes, global_batch)
        self.window_blocks = -(-window_blocks // self.lanes)
        self.lane_edges = np.arange(self.lanes + 1) * global_batch // self.lanes
        self._groups: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[int, tuple[int, int, int, np.ndarray]] = {}

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step in it) of an optimizer step."""
        return divmod(step, self.steps_per_epoch)

    def batch(self, epoch: int, step_in_epoch: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows, int64, of positions `start` .. `stop` (all of them by default) of a step's global batch.

        Costs the window, not the epoch, wherever one starts.
        """
        assert 0 <= step_in_epoch < self.steps_per_epoch
        stop = self.global_batch if stop is None else stop
        parts = []
        for lane, begin, end in self._lane_ranges(step_in_epoch, start, stop):
            while begin < end:
                low, high, rows = self._window(epoch, lane, begin)
                parts.append(rows[begin - low : min(end, high) - low])
                begin = min(end, high)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def live_groups(
        self, epoch: int, step_in_epoch: int, start: int = 0, stop: int | None = None
    ) -> set[int]:
        """Row groups that the positions `start` .. `stop` may still draw from after this step: what is worth keeping."""
        stop = self.global_batch if stop is None else stop
        groups, edges = self._epoch(epoch)
        live: set[int] = set()
        for _, _, end in self._lane_ranges(step_in_epoch, start, stop):
            first = (
                (int(np.searchsorted(edges, end - 1, side="right")) - 1)
                // self.window_blocks
                * self.window_blocks
            )
            live.update(groups[first : first + self.window_blocks].tolist())
        return live

    def read_amplification(self, readers: int, epoch: int = 0) -> float:
        """Row groups read by all readers over row groups in the epoch, at most; 1 is ideal.

        A reader is a process that reads for itself: a rank, or each of its loader processes.
        """
        _, edges = self._epoch(epoch)
        owners = np.arange(readers + 1) * self.global_batch // readers
        reads = 0
        used: set[int] = set()
        for lane in range(self.lanes):
            low, high = self.lane_edges[lane], self.lane_edges[lane + 1]
            sharing = int(np.sum((owners[:-1] < high) & (owners[1:] > low) & (owners[:-1] < owners[1:])))
            first = int(np.searchsorted(edges, low * self.steps_per_epoch, side="right")) - 1
            last = int(np.searchsorted(edges, high * self.steps_per_epoch - 1, side="right")) - 1
            used.update(range(first, last + 1))
            reads += sharing * (last + 1 - first)
        return reads / len(used)

    def _lane_ranges(self, step: int, start: int, stop: int) -> list[tuple[int, int, int]]:
        """(lane, begin, end) on the epoch's line of rows, for positions of a step."""
        ranges = []
        first = int(np.searchsorted(self.lane_edges, start, side="right")) - 1
        for lane in range(first, self.lanes):
            low, high = int(self.lane_edges[lane]), int(self.lane_edges[lane + 1])
            if low >= stop:
                break
            base = low * self.steps_per_epoch + step * (high - low)
            begin, end = base + max(start, low) - low, base + min(stop, high) - low
            if begin < end:
                ranges.append((lane, begin, end))
        return ranges

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of row groups, and where each begins on the line (with the end of the last)."""
        if epoch not in self._groups:
            groups = permutation(len(self.sizes), self.seed, Stream.GROUP_ORDER, epoch)
            edges = np.concatenate([[0], np.cumsum(self.sizes[groups])])
            self._groups = {
                **{e: v for e, v in self._groups.items() if abs(e - epoch) == 1},
                epoch: (groups, edges),
            }
        return self._groups[epoch]

    def _window(self, epoch: int, lane: int, at: int) -> tuple[int, int, np.ndarray]:
        """(begin, end, rows in shuffled order) of the window that holds place `at` of a lane's line."""
        held = self._windows.get(lane)
        if held and held[0] == epoch and held[1] <= at < held[2]:
            return held[1:]
        groups, edges = self._epoch(epoch)
        first = (int(np.searchsorted(edges, at, side="right")) - 1) // self.window_blocks * self.window_blocks
        last = min(first + self.window_blocks, len(groups))
        low = max(int(edges[first]), int(self.lane_edges[lane]) * self.steps_per_epoch)
        high = min(int(edges[last]), int(self.lane_edges[lane + 1]) * self.steps_per_epoch)
        rows = np.concatenate([self.starts[g] + np.arange(self.sizes[g]) for g in groups[first:last]])
        rows = rows[low - edges[first] : high - edges[first]]
        rows = rows[permutation(len(rows), self.seed, Stream.WINDOW_ORDER, epoch, lane, first)]
        self._windows[lane] = (epoch, low, high, rows)
        return low, high, rows


def _lanes(sizes: np.ndarray, global_batch: int) -> int:
    # As many as keep a lane long and the memory bounded; a divisor of the batch where one is near, so that
    # the usual worker counts own whole lanes.
    most = max(1, min(global_batch, len(sizes) // GROUPS_PER_LANE, ROWS_IN_FLIGHT // int(sizes.max())))
    divisor = max(lanes for lanes in range(1, most + 1) if global_batch % lanes == 0)
    return divisor if 2 * divisor >= most else most
