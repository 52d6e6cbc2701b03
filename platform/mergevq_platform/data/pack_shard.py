"""One shard of a pack: its job, its writing, and the record of the finished shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mergevq.image_size import ImageSize
from mergevq_platform.data.dataset import Dataset, ImageRow
from mergevq_platform.data.images.decoding import (
    ImageDecodeError,
    ImageTraits,
    cover_scale,
    decoded,
    encode_like,
    has_several_frames,
    resize_to_cover,
)
from mergevq_platform.data.images.kinds import FormatCounts
from mergevq_platform.data.images.transparency import WHITE
from mergevq_platform.data.parquet.directory import open_dataset
from mergevq_platform.data.parquet.manifest import Shard, Skipped, shard_from
from mergevq_platform.data.parquet.shards import ImageRecord, write_shard
from mergevq_platform.data.reading import Background, Reading
from mergevq_platform.data.sources.image_source import Item, read_item
from mergevq_platform.distributed.sharded_map import ShardRecords


class PackedShard(NamedTuple):
    """The result of one planned shard; no shard where none of its images was usable."""

    file: str
    images: int  # looked at
    shard: Shard | None
    unlabelled: int  # of those packed
    skipped: tuple[Skipped, ...]
    kinds: FormatCounts


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """One shard to be written."""

    directory: str
    split: str
    file: str
    kind: str
    identity: str
    items: tuple[Item, ...]
    classes: tuple[str, ...]
    size: ImageSize | None
    max_pixels: int
    row_group_rows: int
    background: Background | None
    reading: Reading = field(default_factory=Reading)

    @property
    def key(self) -> str:
        """Digest of everything that decides the shard's content."""
        # Where the source lies does not matter: moved, it is the same source. (asdict would copy every item.)
        items = [[item.name, item.label, item.offset, item.size] for item in self.items]
        settings = [
            self.split,
            self.file,
            self.kind,
            self.identity,
            self.classes,
            self.size,
            self.max_pixels,
            self.row_group_rows,
            *(
                [] if self.background in (WHITE, None) else [self.background]
            ),  # white: as it was before there were others
        ]
        columns = [self.reading.image_column, self.reading.label_column]
        chosen = [columns] if any(columns) else []
        return hashlib.sha256(json.dumps([items, settings, *chosen]).encode()).hexdigest()


def pack_shard(job: PackJob) -> PackedShard:
    """Write one shard and, after it, the record that says so."""
    skipped: list[Skipped] = []
    unlabelled = 0
    traits: list[ImageTraits] = []

    def usable() -> Iterator[ImageRecord]:
        nonlocal unlabelled
        for item, data, label in _contents(job):
            try:
                if isinstance(data, OSError):
                    raise ImageDecodeError(f"cannot be read ({(data.strerror or str(data)).lower()})")
                image, look = decoded(data, max_pixels=job.max_pixels, background=job.background)
                yield ImageRecord(_fitted(image, data, job.size), item.name, label)
                unlabelled += label < 0
                traits.append(look._replace(several_frames=has_several_frames(data)))
            except ImageDecodeError as error:
                skipped.append(Skipped(item.name, str(error)))

    shard = write_shard(
        Path(job.directory), job.file, usable(), job.classes, row_group_rows=job.row_group_rows
    )
    part = PackedShard(job.file, len(job.items), shard, unlabelled, tuple(skipped), FormatCounts.of(traits))
    facts = {
        "shard": asdict(shard) if shard else None,
        "unlabelled": part.unlabelled,
        "skipped": [asdict(item) for item in skipped],
        "kinds": part.kinds.to_tree(),
    }
    ShardRecords(Path(job.directory)).write(job.file, job.key, facts)
    return part


def finished(job: PackJob) -> PackedShard | None:
    """The result of the same job by an earlier run, if its shard is there whole."""
    facts = ShardRecords(Path(job.directory)).read(job.file, job.key)
    kinds = FormatCounts.from_tree(facts.get("kinds")) if facts else None
    if facts is None or kinds is None or "unlabelled" not in facts:
        return None
    shard = shard_from(facts["shard"]) if facts["shard"] else None
    skipped = tuple(Skipped(**item) for item in facts["skipped"])
    return PackedShard(job.file, len(job.items), shard, facts["unlabelled"], skipped, kinds)


def _contents(job: PackJob) -> Iterator[tuple[Item, bytes | OSError, int]]:
    """Each item with its encoded bytes (or why they cannot be had) and its label."""
    if job.kind != "parquet":
        for item in job.items:
            try:
                yield item, read_item(item), item.label
            except OSError as error:
                yield item, error, item.label
        return
    # A row's split is the source's own: images held out for validation still lie in its `train`.
    by_split: dict[str, Dataset] = {}
    rows: dict[Item, ImageRow] = {}
    for item in sorted(job.items, key=lambda item: item.offset):
        split = item.name.split("/")[0]
        dataset = by_split.setdefault(split, open_dataset(item.file, split, job.reading))
        (rows[item],) = dataset.read([item.offset])
    for item in job.items:
        yield item, rows[item].data or b"", rows[item].label


def _fitted(image: Image.Image, data: bytes, size: ImageSize | None) -> bytes:
    if size is None or cover_scale(image, size) >= 1:
        return data
    return encode_like(resize_to_cover(image, size), data)
