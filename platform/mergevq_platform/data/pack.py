"""Packing folders, tars and Parquet into shards: shuffled by seed, in parallel, resumable, bad files listed.

A shard's images are fixed before anything is written, so any number of processes in any order give the same files. Each
finished shard leaves a record with its checksum; a pack that is run again keeps those shards.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.files import write_whole
from mergevq.hub import on_hub
from mergevq.image_size import ImageSize, parse_size
from mergevq_platform.data.hub import local_folder
from mergevq_platform.data.images.decoding import MAX_PIXELS
from mergevq_platform.data.images.kinds import FormatCounts
from mergevq_platform.data.images.transparency import WHITE
from mergevq_platform.data.pack_order import only_held_out, shuffled
from mergevq_platform.data.pack_shard import PackedShard, PackJob, finished, pack_shard
from mergevq_platform.data.parquet.directory import read_manifest
from mergevq_platform.data.parquet.manifest import (
    MANIFEST,
    Manifest,
    Split,
    existing_manifest,
    refuse_foreign_files,
)
from mergevq_platform.data.parquet.shards import ROW_GROUP_ROWS, SHARD_ROWS
from mergevq_platform.data.reading import Background, Reading
from mergevq_platform.data.sources.choices import Choices, Layout
from mergevq_platform.data.sources.image_source import ImageSource, Item
from mergevq_platform.data.sources.source import find_source
from mergevq_platform.distributed.hub_cache import fetch_on_nodes
from mergevq_platform.distributed.ordered_map import answers
from mergevq_platform.distributed.sharded_map import RECORDS, ShardRecords, plan_digest, resumed_map
from mergevq_platform.storage.hub import pinned

MapJobs = Callable[[Callable[[PackJob], PackedShard], list[PackJob]], Iterable[PackedShard]]


def pack(
    source: str | Path,
    directory: str | Path,
    *,
    size: ImageSize | None = None,
    parallel: bool = False,
    labels: str | Path | None = None,
    validation_fraction: float = 0.0,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    background: Background | None = None,
    shard_rows: int = SHARD_ROWS,
    row_group_rows: int = ROW_GROUP_ROWS,
    progress: bool = True,
    map_jobs: MapJobs | None = None,
    layout: Layout | None = None,
    folder_splits: Sequence[str] | None = None,
    class_depth: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Manifest:
    """Pack the images of `source`, a path or a data set of the Hub, into shards under `directory`; returns the manifest, which
    lists skipped files.

    `size` shrinks images until they just cover it, a square (its shorter side) or (height, width), and never enlarges.
    `parallel` uses the Ray cluster that this process is connected to; every node must see both places. `labels` is a CSV of
    files and classes. `layout`, `folder_splits`, `class_depth` and the columns choose where the source leaves a choice, see
    `Choices` and `Reading`; `say` is told what was understood.
    `validation_fraction` holds that share of `train` out as `val`; where the source has a `val`, that is said instead. Run again after an
    interruption, it goes on; run again after its end, it does nothing. Every image is decoded once to prove it whole.
    Transparent pixels are put on `background` (none: that of a source that is packed itself, else white): where an image is
    resized they are so from then on, else whenever it is read.

    Raises `InputError` for a source without usable images or a directory that holds something else.
    """
    size = None if size is None else parse_size(size)
    if not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction is {validation_fraction}: it must be at least 0 and below 1")
    source, directory = _places(source, directory, parallel)
    choices = Choices(
        layout=layout,
        splits=tuple(folder_splits) if folder_splits is not None else None,
        class_depth=class_depth,
        labels=Path(labels) if labels is not None else None,
        reading=parse(
            Reading, {"image_column": image_column, "label_column": label_column, "background": background}
        ),
    )
    found = _found(source, choices, directory, say)
    splits = shuffled(found, seed, shard_rows, validation_fraction)
    _say_held_out(found, splits, validation_fraction, say)
    background = choices.reading.background or _background_of(source)
    jobs = [
        PackJob(
            directory=str(directory),
            split=split,
            file=f"{split}-{index:05d}.parquet",
            kind=found.kind,
            identity=found.identity,
            items=tuple(items),
            classes=found.classes,
            size=size,
            max_pixels=max_pixels,
            row_group_rows=row_group_rows,
            reading=choices.reading,
            background=background,
        )
        for split, shards in splits.items()
        for index, items in enumerate(shards)
    ]
    digest, records = plan_digest(job.key for job in jobs), ShardRecords(directory)
    if existing := _existing_pack(directory, digest):
        records.end()
        return existing
    records.begin()
    run = map_jobs or (_on_ray if parallel else map)
    packed = resumed_map(
        jobs,
        lambda missing: run(pack_shard, missing),
        finished=finished,
        size=lambda job: len(job.items),
        title="packing",
        unit="images",
        progress=progress,
    )

    stated_size = list(size) if isinstance(size, tuple) else size
    settings = {"path": str(source), "size": stated_size, "seed": seed, "digest": digest}
    columns = {"image_column": image_column, "label_column": label_column}
    settings |= {key: column for key, column in columns.items() if column is not None}
    manifest = _manifest(found, splits, packed, size, settings, background)
    records.remove_leftovers(job.file for job in jobs)
    write_whole(directory / MANIFEST, manifest.to_json())
    records.end()
    return manifest


def _places(source: str | Path, directory: str | Path, parallel: bool) -> tuple[str | Path, Path]:
    """The source, of the Hub at a commit that every node has, and the absolute directory of a pack.

    Raises `InputError` for a directory that is the source, lies in it, or holds something else.
    """
    if on_hub(source):
        source = pinned(str(source), "dataset")
        fetch_on_nodes([source] if parallel else [], one_path=True)
    directory = Path(directory).expanduser().absolute()
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file: name a directory")
    root = Path(local_folder(source)).expanduser().resolve()
    if directory.resolve() == root:
        raise InputError(f"source and directory are the same, {directory}: name another directory")
    if directory.resolve().is_relative_to(root):
        raise InputError(f"{directory} lies inside of {source}: name a directory elsewhere")
    if not (directory / RECORDS).exists() and not existing_manifest(directory):
        refuse_foreign_files(directory)
    return source, directory


def _existing_pack(directory: Path, digest: str) -> Manifest | None:
    """The manifest of the same pack, if it is finished. Raises `InputError` where another image set lies there."""
    existing = existing_manifest(directory)
    if existing and existing.source.get("digest") != digest:
        raise InputError(
            f"{directory} already holds another image set: name another directory, or delete it first"
        )
    return existing


def _say_held_out(
    found: ImageSource,
    splits: dict[str, list[list[Item]]],
    validation_fraction: float,
    say: Callable[[str], None],
) -> None:
    if validation_fraction and "val" in found.splits:
        say("  held out  none: the source has a split 'val' already, --validation-fraction is not used")
    if alone := only_held_out(found, splits):
        say(f"  held out  {alone}")


def _found(source: str | Path, choices: Choices, directory: Path, say: Callable[[str], None]) -> ImageSource:
    """The source to pack; `say` is told what was understood. One that is refused leaves nothing behind."""
    scratch = directory / RECORDS
    before, made = scratch.exists(), not directory.exists()
    try:
        found = find_source(source, choices, scratch=scratch)
    except InputError:
        if not before:
            shutil.rmtree(directory if made else scratch, ignore_errors=True)
        raise
    if found.understood is not None:
        say("\n".join([str(source), *found.understood.lines()]))
    return found


class _Packer:
    """A process that packs shards."""

    def __init__(self, pack: Callable[[PackJob], PackedShard]) -> None:
        self.answer = pack


def _on_ray(pack: Callable[[PackJob], PackedShard], jobs: list[PackJob]) -> Iterable[PackedShard]:
    """`pack` of every job, on as many actors as the cluster that this process is connected to has CPUs."""
    import ray

    workers = min(len(jobs), int(ray.cluster_resources().get("CPU", 1)))
    return answers(_Packer, pack, workers=workers)(jobs)


def _background_of(source: str | Path) -> Background | None:
    """The background of a source: white, or that of a set that is packed already.

    One whose alpha was dropped when its images were resized keeps that: none.
    """
    manifest = read_manifest(source) if Path(local_folder(source)).is_dir() else None
    if manifest is None or (manifest.background is None and manifest.size is None):
        return WHITE
    return manifest.background


def _manifest(
    found: ImageSource,
    splits: dict[str, list[list[Item]]],
    packed: list[PackedShard],
    size: ImageSize | None,
    settings: dict[str, Any],
    background: Background | None,
) -> Manifest:
    """The manifest of a finished pack. Raises `InputError` where no image was usable."""
    done: dict[str, Split] = {}
    for split in splits:
        mine = [part for part in packed if part.file.startswith(f"{split}-")]
        shards = tuple(part.shard for part in mine if part.shard)
        unlabelled = sum(part.unlabelled for part in mine)
        labelled = unlabelled < sum(shard.rows for shard in shards)
        done[split] = Split(
            shards=shards,
            labelled=labelled,
            skipped=tuple(item for part in mine for item in part.skipped),
            unlabelled=unlabelled if labelled else 0,
            kinds=FormatCounts.sum(part.kinds for part in mine),
        )
    if found.refused:
        first = next(iter(done))
        done[first] = replace(done[first], skipped=(*done[first].skipped, *found.refused))
    if not any(split.rows for split in done.values()):
        worst = next(item for split in done.values() for item in split.skipped)
        raise InputError(f"{settings['path']} has no usable image: the first, {worst.file}, {worst.reason}")
    source = {"kind": "pack", "of": found.kind, **settings, "ignored": found.ignored}
    if found.understood is not None:
        source["understood"] = found.understood.to_tree()
    return Manifest(splits=done, classes=found.classes, size=size, source=source, background=background)
