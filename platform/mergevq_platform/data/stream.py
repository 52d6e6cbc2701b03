"""The endless stream of training batches of one rank: decoded ahead of use, in the order of `SampleOrder`.

A stream that starts at step s yields exactly what an undisturbed stream yields from step s on, and the union of the
ranks' samples in a pass of a step does not depend on the number of ranks or of loader processes.
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from mergevq.errors import InputError
from mergevq_platform.data.batch_partition import BatchPartition
from mergevq_platform.data.dataset import Dataset
from mergevq_platform.data.images.decoding import MAX_PIXELS
from mergevq_platform.data.loader import Batch, BatchPiece, PieceLoader, ReplacedImage
from mergevq_platform.data.order import WINDOW_BLOCKS, SampleOrder
from mergevq_platform.data.views import ViewsConfig

STEPS_AHEAD = 2

log = logging.getLogger(__name__)


class TrainStream:
    """The micro-batches of one rank, step by step, from `start_step` on, without end.

    Iterating yields for each optimizer step the list of this rank's micro-batches, one for each pass of `partition`: `image`,
    and `student` and `teacher` where `views` asks for them, uint8 (b, 3, S, S) in channels-last memory; `label` int64 (b,),
    -1 for none; `sample` int64 (b,), the row number. The ranks of a pass may differ in b by one.

    `workers` loader processes decode (0: a thread of this process does). An image that cannot be decoded is logged with
    shard and row and replaced by the next good row of its row group; when more than `bad_image_limit` different
    ones have been met, by all ranks since the run began, iterating or `share` raises `InputError`: `known_bad` are the rows of before,
    and ranks tell each other what `new_bad` holds. Use it as a context manager, or `close` it.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: ViewsConfig,
        *,
        partition: BatchPartition,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        workers: int = 0,
        bad_image_limit: int = 0,
        known_bad: Collection[int] = (),
        window_blocks: int = WINDOW_BLOCKS,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        assert world_size <= partition.workers
        self.order = SampleOrder(dataset.row_group_sizes, partition.global_batch, seed, window_blocks)
        self.bad: dict[int, ReplacedImage] = {}  # met by this rank
        self.known_bad = set(known_bad)  # by the whole run, as far as was shared
        self._dataset, self._limit, self._workers = dataset, bad_image_limit, workers
        self._plan = PieceLoader(
            dataset=dataset,
            order=self.order,
            views=views,
            seed=seed,
            start_step=start_step,
            partition=partition,
            rank=rank,
            world_size=world_size,
            max_pixels=max_pixels,
        )
        # The model is on the GPU before its data is asked for; the thread that pins must use the same device.
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        self._ready: queue.Queue[Any] = queue.Queue(STEPS_AHEAD)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def bad_images(self) -> int:
        """Different bad images met in the steps yielded so far, on this rank."""
        return len(self.bad)

    @property
    def new_bad(self) -> list[ReplacedImage]:
        """Bad images that this rank has met and no other knows of."""
        return [item for row, item in self.bad.items() if row not in self.known_bad]

    def share(self, bad: Sequence[ReplacedImage]) -> None:
        """Add the bad images that all ranks have met. Raises `InputError` where that makes too many."""
        self.known_bad |= {item.row for item in bad}
        self._check_limit(bad)

    def __iter__(self) -> Iterator[list[Batch]]:
        assert self._thread is None, "a stream is iterated once"
        self._thread = threading.Thread(target=self._fill, name="mergevq-data", daemon=True)
        self._thread.start()
        while True:
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            micro_batches, bad = item
            self._account(bad)
            yield micro_batches

    def close(self) -> None:
        """End the loader's thread and processes."""
        self._stopping.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                continue

    def __enter__(self) -> TrainStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _account(self, bad: list[ReplacedImage]) -> None:
        for item in bad:
            if item.row not in self.bad and item.row not in self.known_bad:
                log.warning("bad image, replaced: %s %s", item.place, item.reason)
            self.bad[item.row] = item
        self._check_limit(bad)

    def _check_limit(self, bad: Sequence[ReplacedImage]) -> None:
        count = len(self.known_bad | self.bad.keys())
        if bad and count > self._limit:
            last = bad[-1]
            raise InputError(
                f"{count} bad images, more than data.bad_image_limit {self._limit}; the last: {last.place} of "
                f"{self._dataset.path} {last.reason}. Pack the data again, or raise the limit"
            )

    def _fill(self) -> None:
        parts: Iterator[BatchPiece] | None = None
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)
            parts = self._parts()
            while not self._stopping.is_set():
                step: list[Batch] = []
                bad: list[ReplacedImage] = []
                for _ in range(self._plan.partition.passes):
                    pieces = [next(parts) for _ in range(max(1, self._workers))]
                    for piece in pieces:
                        if piece.error:
                            raise InputError(piece.error)
                        bad.extend(piece.bad)
                    step.append(self._joined([piece.batch for piece in pieces if piece.batch]))
                self._put((step, bad))
        except BaseException as error:  # the iterating thread raises it
            self._put(error)
        finally:
            parts = None  # ends the loader processes now: an error's traceback would keep them

    def _parts(self) -> Iterator[BatchPiece]:
        if not self._workers:
            return iter(self._plan)
        # A forked child would inherit locks of Ray's, gloo's and Arrow's threads in whatever state they are.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        loader = DataLoader(
            self._plan,
            batch_size=None,
            num_workers=self._workers,
            prefetch_factor=2,
            multiprocessing_context=context,
        )
        return iter(loader)

    def _joined(self, pieces: list[Batch]) -> Batch:
        batch = (
            pieces[0]
            if len(pieces) == 1
            else {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        )
        return (
            {name: tensor.pin_memory() for name, tensor in batch.items()}
            if self._device is not None
            else batch
        )

    def _put(self, item: Any) -> None:
        while not self._stopping.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue


def to_unit_range(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on `device`: images as float32 in [-1, 1], contiguous (B, 3, H, W); labels and samples as they are."""
    moved = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
    return {
        name: tensor.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)
        if tensor.ndim == 4
        else tensor
        for name, tensor in moved.items()
    }
