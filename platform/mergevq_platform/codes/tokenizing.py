"""Tokenizing an image set once, for stage 2: in parallel, resumable, each shard whole or absent.

What every shard holds is planned before anything is written, so any number of workers gives the same files. Views of a
training image come in pairs: see `tokenize_worker`. Splits other than the training split get crop 0 alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from mergevq import keep as kept
from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq.files import write_whole
from mergevq.keep import KeepDistributionConfig
from mergevq.merge_schedule import require_reachable
from mergevq.serialization import read_config
from mergevq_platform.codes.allocated import AllocatedCounts
from mergevq_platform.codes.manifest import CodeManifest, CodeShard, read_manifest
from mergevq_platform.codes.tokenize_worker import (
    CodeShardJob,
    ImageRange,
    Tokenization,
    TokenizedShard,
    TokenizeWorker,
)
from mergevq_platform.data import (
    Reading,
    open_dataset,
)
from mergevq_platform.data.parquet.directory import split_names
from mergevq_platform.data.parquet.manifest import MANIFEST, refuse_foreign_files
from mergevq_platform.data.parquet.splits import same_split
from mergevq_platform.distributed.ordered_map import answers
from mergevq_platform.distributed.sharded_map import plan_digest, resumed_map
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.tokenizer_ref import TokenizerRef

GROUP_ROWS = 256
SHARD_GROUPS = 4  # blocks of images in a shard


def tokenize(
    tokenizer: TokenizerRef,
    directory: str | Path,
    *,
    data: str,
    keep: Sequence[int] | KeepDistributionConfig | AllocatedCounts,
    crops: int = 2,
    splits: Sequence[str] | None = None,
    train_split: str = "train",
    seed: int = 0,
    workers: int = 0,
    device: Literal["cpu", "cuda"] = "cpu",
    progress: bool = True,
    reading: Reading | None = None,
) -> CodeManifest:
    """Tokenize an image set into `directory`; returns the manifest. `workers` Ray actors, or this process for 0.

    `keep`: counts, at each of which every view is stored; a distribution, from which every block of images draws the one
    that it is stored at; or a calibrated allocator with a budget, which gives every view its own. `crops`: views of each image
    of `train_split`. Run again after an interruption, it goes on; run again after its end, it does nothing. Images that cannot be
    decoded are left out and listed. Raises `InputError` for counts that the tokenizer cannot reach, for an allocator that is not
    calibrated for the budget or for this tokenizer, and for a directory that holds something else. Every node must see both places.
    """
    directory = Path(directory).expanduser().absolute()
    if crops < 1:
        raise InputError(f"crops is {crops}: it must be at least 1")
    distribution, stored = _kept_counts(tokenizer, keep, seed)
    names = tuple(splits or split_names(data))
    opened = {name: open_dataset(data, name, reading) for name in names}
    data = next(iter(opened.values())).path  # absolute: workers run in other directories
    jobs = [
        job
        for name, dataset in opened.items()
        for job in planned(name, dataset.rows, crops if same_split(name, train_split) else 1, stored)
    ]
    fingerprints = {name: dataset.fingerprint for name, dataset in opened.items()}
    allocated = keep if isinstance(keep, AllocatedCounts) else None
    spec = Tokenization(tokenizer, data, fingerprints, str(directory), seed, device, reading, allocated)
    digest, records = plan_digest(map(spec.key, jobs)), spec.records
    if (directory / MANIFEST).is_file():
        existing = read_manifest(directory)
        if existing.plan.get("digest") == digest:
            records.end()
            return existing
        raise InputError(
            f"{directory} already holds other codes (another tokenizer, data or plan): name another directory, or delete it first"
        )
    if not records.folder.exists():
        refuse_foreign_files(directory)
    records.begin()
    parts = resumed_map(
        jobs,
        lambda missing: answers(TokenizeWorker, spec, workers=workers, device=device)(missing),
        finished=lambda job: _finished(spec, job),
        size=lambda job: sum(block.stop - block.start for block in job.blocks),
        title="tokenizing",
        unit="views",
        progress=progress,
    )

    plan = {
        "data": data,
        "data_fingerprints": fingerprints,
        "crops": crops,
        "seed": seed,
        "distribution": to_tree(distribution) if distribution else None,
        "digest": digest,
    }
    learnt = [dataset for name, dataset in opened.items() if same_split(name, train_split)]
    chosen = (learnt or list(opened.values()))[0]  # a test split without labels takes no classes away
    classes = chosen.classes if chosen.labelled else ()
    manifest = _manifest(tokenizer, names, classes, jobs, parts, plan, allocated)
    records.remove_leftovers(job.file for job in jobs)
    write_whole(directory / MANIFEST, manifest.to_json())
    records.end()
    return manifest


def _kept_counts(
    tokenizer: TokenizerRef, keep: Sequence[int] | KeepDistributionConfig | AllocatedCounts, seed: int
) -> tuple[KeepDistributionConfig | None, Callable[[int], tuple[int | None, ...]]]:
    """The distribution, if there is one, and the kept counts that each block of images is stored at; None: each image's own."""
    if isinstance(keep, AllocatedCounts):
        keep.calibrated.calibration.require_tokenizer(tokenizer.sha256)
        keep.calibrated.calibration.of(keep.budget)
        return None, lambda block: (None,)
    with checkpoints.weights(tokenizer.location, files=checkpoints.CONFIG) as place:
        model = read_config(place)
    if isinstance(keep, Sequence):
        distribution, wanted = None, tuple(sorted(set(keep)))
    else:
        distribution, wanted = keep, keep.candidates(model.grid_tokens)
    for tokens in wanted:
        require_reachable(model.grid_tokens, tokens, model.encoder.depth)

    def stored(block: int) -> tuple[int, ...]:
        if distribution is None:
            return wanted
        return (kept.draw(distribution, model.grid_tokens, seed=seed, step=block),)

    return distribution, stored


def planned(
    split: str, rows: int, crops: int, stored: Callable[[int], tuple[int | None, ...]]
) -> Iterator[CodeShardJob]:
    """The shards of a split: a file for every few blocks of images and every crop; `stored(block)` are its kept counts."""
    starts = range(0, rows, GROUP_ROWS)
    for crop in range(crops):
        for shard, first in enumerate(range(0, len(starts), SHARD_GROUPS)):
            blocks = tuple(
                ImageRange(
                    start, min(start + GROUP_ROWS, rows), stored(crop * len(starts) + start // GROUP_ROWS)
                )
                for start in starts[first : first + SHARD_GROUPS]
            )
            yield CodeShardJob(split, f"{split}-crop{crop}-{shard:05d}.parquet", crop, blocks)


def _manifest(
    tokenizer: TokenizerRef,
    names: Sequence[str],
    classes: tuple[str, ...],
    jobs: Sequence[CodeShardJob],
    parts: Sequence[TokenizedShard],
    plan: dict[str, Any],
    allocated: AllocatedCounts | None,
) -> CodeManifest:
    splits: dict[str, tuple[CodeShard, ...]] = {}
    views: dict[str, int] = {}
    counted: dict[str, Counter[tuple[int, int]]] = {}
    for name in names:
        mine = [part for job, part in zip(jobs, parts, strict=True) if job.split == name]
        counted[name] = Counter()
        for part in mine:
            counted[name].update({(label, count): found for label, count, found in part.counted})
        splits[name] = tuple(part.shard for part in mine if part.shard)
        views[name] = sum(part.views for part in mine)
        if not views[name]:
            raise InputError(f"{plan['data']} has no usable image in split '{name}': pack it again")
    stored = {group.keep for shards in splits.values() for shard in shards for group in shard.groups}
    present = {count for found in counted.values() for _, count in found}
    return CodeManifest(
        tokenizer=tokenizer,
        classes=classes,
        splits=splits,
        views=views,
        keeps=tuple(sorted(present | {keep for keep in stored if keep is not None})),
        plan=plan,
        skipped=tuple(reason for part in parts for reason in part.skipped),
        allocation=None if allocated is None else allocated.described(counted, classes),
    )


def _finished(spec: Tokenization, job: CodeShardJob) -> TokenizedShard | None:
    """The result of the same job by an earlier run, if its shard is there whole."""
    facts = spec.records.read(job.file, spec.key(job))
    return None if facts is None else TokenizedShard.of(facts)
