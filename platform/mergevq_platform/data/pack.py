"""Packing folders, tars and Parquet into shards: shuffled by seed, in parallel, resumable, bad files listed.

A shard's images are fixed before anything is written, so any number of processes in any order give the same files. Each
finished shard leaves a part file with its checksum; a pack that is run again keeps those shards.
"""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.rng import Stream, permutation
from mergevq_platform.data.images.decoding import MAX_PIXELS
from mergevq_platform.data.images.kinds import FormatCounts
from mergevq_platform.data.images.transparency import WHITE
from mergevq_platform.data.pack_shard import Job, Part, finished, pack_shard
from mergevq_platform.data.parquet.directory import PARTS, read_manifest
from mergevq_platform.data.parquet.shards import (
    MANIFEST,
    ROW_GROUP_ROWS,
    SHARD_ROWS,
    Manifest,
    Split,
    existing_manifest,
    refuse_foreign_files,
    write_text,
)
from mergevq_platform.data.reading import Background, Reading
from mergevq_platform.data.sources.choices import Choices, Layout
from mergevq_platform.data.sources.source import ImageSource, Item, find_source
from mergevq_platform.data.sources.summary import named

MapJobs = Callable[[Callable[[Job], Part], list[Job]], Iterable[Part]]


def pack(
    source: str | Path,
    directory: str | Path,
    *,
    size: int | None = None,
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
    """Pack the images of `source` into shards under `directory`; returns the manifest, which lists skipped files.

    `size` shrinks images to that shorter side (never enlarges). `parallel` uses the Ray cluster that this process is
    connected to; every node must see both places. `labels` is a CSV of files and classes. `layout`, `folder_splits`,
    `class_depth` and the columns choose where the source leaves a choice, see `Choices` and `Reading`; `say` is told what was understood.
    `validation_fraction` holds that share of `train` out as `val`; where the source has a `val`, that is said instead. Run again after an
    interruption, it goes on; run again after its end, it does nothing. Every image is decoded once to prove it whole.
    Transparent pixels are put on `background` (none: that of a source that is packed itself, else white): where an image is
    resized they are so from then on, else whenever it is read.

    Raises `InputError` for a source without usable images or a directory that holds something else.
    """
    directory = Path(directory).expanduser().absolute()
    if size is not None and size < 1:
        raise InputError(f"size is {size}: it must be at least 1")
    if not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction is {validation_fraction}: it must be at least 0 and below 1")
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is a file: name a directory")
    if directory.resolve() == Path(source).expanduser().resolve():
        raise InputError(f"source and directory are the same, {directory}: name another directory")
    if directory.resolve().is_relative_to(Path(source).expanduser().resolve()):
        raise InputError(f"{directory} lies inside of {source}: name a directory elsewhere")
    if not (directory / PARTS).exists() and not existing_manifest(directory):
        refuse_foreign_files(directory)
    choices = Choices(
        layout=layout,
        splits=tuple(folder_splits) if folder_splits is not None else None,
        class_depth=class_depth,
        labels=Path(labels) if labels is not None else None,
        reading=parse(
            Reading, {"image_column": image_column, "label_column": label_column, "background": background}
        ),
    )
    found = _found(source, choices, directory)
    if found.understood is not None:
        say("\n".join([str(source), *found.understood.lines()]))
    splits = _shuffled(found, seed, shard_rows, validation_fraction)
    if validation_fraction and "val" in found.splits:
        say("  held out  none: the source has a split 'val' already, --validation-fraction is not used")
    if alone := _only_held_out(found, splits):
        say(f"  held out  {alone}")
    background = choices.reading.background or _background_of(source)
    jobs = [
        Job(
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
    digest = hashlib.sha256("".join(job.key for job in jobs).encode()).hexdigest()
    if existing := existing_manifest(directory):
        if existing.source.get("digest") == digest:
            shutil.rmtree(directory / PARTS, ignore_errors=True)
            return existing
        raise InputError(
            f"{directory} already holds another image set: name another directory, or delete it first"
        )
    (directory / PARTS).mkdir(parents=True, exist_ok=True)

    parts = {job.file: part for job in jobs if (part := finished(job))}
    run = map_jobs or (on_ray if parallel else map)
    with _bar(progress) as bar:
        task = bar.add_task("packing", total=sum(len(job.items) for job in jobs))
        bar.advance(task, sum(part.images for part in parts.values()))
        for part in run(pack_shard, [job for job in jobs if job.file not in parts]):
            parts[part.file] = part
            bar.advance(task, part.images)

    description: dict[str, Any] = {
        "kind": "pack",
        "of": found.kind,
        "path": str(source),
        "size": size,
        "seed": seed,
        "digest": digest,
    }
    columns = {"image_column": image_column, "label_column": label_column}
    description |= {key: column for key, column in columns.items() if column is not None}
    description["ignored"] = found.ignored
    if found.understood is not None:
        description["understood"] = found.understood.to_tree()
    manifest = _manifest(found, splits, [parts[job.file] for job in jobs], size, description, background)
    if not any(split.rows for split in manifest.splits.values()):
        first = next(item for split in manifest.splits.values() for item in split.skipped)
        raise InputError(f"{source} has no usable image: the first, {first.file}, {first.reason}")
    _remove_leftovers(directory, {job.file for job in jobs})
    write_text(directory / MANIFEST, manifest.to_json())
    shutil.rmtree(directory / PARTS)
    return manifest


def _found(source: str | Path, choices: Choices, directory: Path) -> ImageSource:
    """What there is to pack; a source that is refused leaves nothing behind."""
    scratch = directory / PARTS
    before, made = scratch.exists(), not directory.exists()
    try:
        return find_source(source, choices, scratch=scratch)
    except InputError:
        if not before:
            shutil.rmtree(directory if made else scratch, ignore_errors=True)
        raise


def on_ray(function: Callable[[Job], Part], jobs: list[Job]) -> Iterator[Part]:
    """Results of `function` over `jobs` as they come, as tasks on the Ray cluster this process is connected to."""
    import ray

    remote = ray.remote(num_cpus=1)(function)
    waiting = iter(jobs)
    ahead = max(
        2, 2 * int(ray.cluster_resources().get("CPU", 1))
    )  # each task carries its list of files: do not queue all
    running = [remote.remote(job) for job in islice(waiting, ahead)]
    while running:
        (done,), running = ray.wait(running, num_returns=1)
        try:
            yield ray.get(done)
        except ray.exceptions.RayTaskError as error:
            for task in running:
                ray.cancel(task)
            raise error.cause or error from None
        running += [remote.remote(job) for job in islice(waiting, 1)]


def _shuffled(
    found: ImageSource, seed: int, shard_rows: int, validation_fraction: float
) -> dict[str, list[list[Item]]]:
    """The images of each split in seeded order, cut into shards."""
    splits: dict[str, list[Item]] = {}
    for split, items in found.splits.items():
        code = zlib.crc32(split.encode())
        if split in found.blocks:
            # Whole row groups change places, and images only within a shard: so the source is read once, in big pieces.
            edges = np.concatenate([[0], np.cumsum(found.blocks[split])]).tolist()
            order = permutation(len(edges) - 1, seed, Stream.PACK_ORDER, code).tolist()
            splits[split] = [item for block in order for item in items[edges[block] : edges[block + 1]]]
        else:
            splits[split] = [
                items[i] for i in permutation(len(items), seed, Stream.PACK_ORDER, code).tolist()
            ]
    if validation_fraction and "val" not in splits:
        if "train" not in splits:
            raise InputError(
                f"validation_fraction {validation_fraction} is held out of 'train', the source has only {', '.join(splits)}: "
                "leave it out, or call the split to hold out of train"
            )
        held_out = round(len(splits["train"]) * validation_fraction)
        if not 0 < held_out < len(splits["train"]):
            raise InputError(
                f"validation_fraction {validation_fraction} of {len(splits['train'])} images leaves nothing of one: change it"
            )
        splits["val"], splits["train"] = splits["train"][:held_out], splits["train"][held_out:]
    shards: dict[str, list[list[Item]]] = {}
    for split, items in splits.items():
        shards[split] = [items[start : start + shard_rows] for start in range(0, len(items), shard_rows)]
        if found.kind == "parquet":
            for index, part in enumerate(shards[split]):
                order = permutation(
                    len(part), seed, Stream.PACK_ORDER, zlib.crc32(split.encode()), index + 1
                ).tolist()
                shards[split][index] = [part[i] for i in order]
    return shards


def _only_held_out(found: ImageSource, splits: dict[str, list[list[Item]]]) -> str | None:
    """A line where classes are in `val` alone because all their images were held out."""
    if "val" in found.splits or "val" not in splits:
        return None
    train, val = ({item.label for shard in splits[split] for item in shard} for split in ("train", "val"))
    if not (alone := sorted(val - train - {-1})):
        return None
    names = named([found.classes[label] for label in alone], 3)
    return f"{len(alone):,} of {len(found.classes):,} classes have images in val alone ({names}): hold out fewer, or add images"


def _background_of(source: str | Path) -> Background | None:
    """What a source is read with: white, or the background of a set that is packed already.

    One whose alpha was dropped when its images were resized keeps that: none.
    """
    manifest = read_manifest(source) if Path(source).is_dir() else None
    if manifest is None or (manifest.background is None and manifest.size is None):
        return WHITE
    return manifest.background


def _manifest(
    found: ImageSource,
    splits: dict[str, list[list[Item]]],
    parts: list[Part],
    size: int | None,
    source: dict[str, Any],
    background: Background | None,
) -> Manifest:
    done: dict[str, Split] = {}
    for split in splits:
        mine = [part for part in parts if part.file.startswith(f"{split}-")]
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
    return Manifest(splits=done, classes=found.classes, size=size, source=source, background=background)


def _remove_leftovers(directory: Path, planned: set[str]) -> None:
    """Delete what killed processes left half-written, and shards of an unfinished pack whose plan had more of them."""
    for path in directory.glob(".*.parquet.*.tmp"):
        path.unlink(missing_ok=True)
    for path in (directory / PARTS).glob("*.json"):
        if path.stem not in planned:
            (directory / path.stem).unlink(missing_ok=True)


def _bar(shown: bool) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)
