"""What a learned allocator learns from: features of images, and what every count of the menu distorts; measured once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.distributed as dist

from mergevq.allocation import Menu, distortions, grid_tokens
from mergevq.allocation.learned import pooled
from mergevq_platform.data import BadImage, EvalBatches
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.passes import jobs_of_batches
from mergevq_platform.evaluation.results import Mergeable, merge
from mergevq_platform.evaluation.spec import EvaluationSpec, batches_key, identity, split_batches
from mergevq_platform.evaluation.splits import EvaluatedSplits
from mergevq_platform.evaluation.tokenizer_worker import ImageBatches, TokenizerWorker
from mergevq_platform.evaluation.worker import Answers, WorkerProcess, answers

BATCHES_PER_BLOCK = 4  # at least


@dataclass
class MeasuredImages(Mergeable):
    """Images in the order of their split."""

    features: np.ndarray  # (n, 3D) float32, see `pooled`
    distortions: np.ndarray  # (n, M) float64, in squared levels of [0, 255]

    def __len__(self) -> int:
        return len(self.features)


class MeasuredJob(NamedTuple):
    """Features and distortions of some batches of images."""

    batches: ImageBatches
    menu: Menu

    def on_batches(self, process: WorkerProcess) -> MeasuredImages:
        """The images, measured; the stem runs once for both."""
        worker = process.worker(TokenizerWorker)

        def one(index: int) -> MeasuredImages:
            images = worker.images_of(self.batches, index)
            cells = grid_tokens(worker.tokenizer, images, self.menu)
            found = distortions(worker.tokenizer, images, self.menu, cells=cells)
            return MeasuredImages(pooled(cells).float().cpu().numpy(), found.cpu().numpy())

        return merge(map(one, self.batches.indices))


def measure_split(
    spec: EvaluationSpec,
    split: str,
    menu: Menu,
    cache: Path | None,
    *,
    measuring: Callable[[int, int], None] = lambda done, images: None,
) -> MeasuredImages:
    """The images of a split, measured by all ranks of this process's group, each its share; all get the whole.

    They are the first of the split, as `evaluation` of the recipe limits them, without those that cannot be decoded. `cache`: the
    folder of finished shares, which are not measured again. `measuring` is called by rank 0 with the images done and all of them.
    The result is the same for any number of ranks.
    """
    answer = answers(TokenizerWorker, spec)
    splits = EvaluatedSplits({split: split_batches(spec.recipe, spec.data, split)})

    def measured(batches: EvalBatches) -> MeasuredImages:
        blocks = jobs_of_batches(batches.num_batches, BATCHES_PER_BLOCK)
        rank, ranks = _place()
        share: list[MeasuredImages] = []
        own: list[MeasuredImages] | BadImage = share
        try:
            for block in blocks[rank::ranks]:
                share.append(_block(answer, spec, batches, block, menu, cache))
                if rank == 0:  # the others are taken to be as far
                    measuring(min(batches.images, ranks * sum(map(len, share))), batches.images)
        except BadImage as error:  # the other ranks must leave out the same images
            own = error
        parts = _gathered(own)
        shares: list[list[MeasuredImages]] = []
        for part in parts:
            if isinstance(part, BadImage):
                raise part
            shares.append(part)
        return merge(shares[number % ranks][number // ranks] for number in range(len(blocks)))

    return splits.over(split, measured)


def _block(
    answer: Answers,
    spec: EvaluationSpec,
    batches: EvalBatches,
    block: tuple[int, ...],
    menu: Menu,
    cache: Path | None,
) -> MeasuredImages:
    job = MeasuredJob(ImageBatches(batches.dataset.split, block, batches.left_out), menu)
    if cache is None:
        return merge(answer([job]))
    key = {"kind": "measured", **batches_key(batches), **identity(spec), "menu": list(menu), "batches": block}
    return Cache(cache).through(key, [job], answer)


def _place() -> tuple[int, int]:
    """Rank and number of ranks of this process's group; one alone without a group."""
    alone = not (dist.is_available() and dist.is_initialized())
    return (0, 1) if alone else (dist.get_rank(), dist.get_world_size())


def _gathered(own: list[MeasuredImages] | BadImage) -> list[list[MeasuredImages] | BadImage]:
    _, ranks = _place()
    if ranks == 1:
        return [own]
    parts: list[list[MeasuredImages] | BadImage] = [[] for _ in range(ranks)]
    dist.all_gather_object(parts, own)
    return parts
