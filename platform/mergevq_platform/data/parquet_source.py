"""A tree of Parquet files as a source to be packed: the rows of each split, by number."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mergevq.errors import InputError
from mergevq_platform.data.opening import open_dataset, split_names
from mergevq_platform.data.reading import Reading
from mergevq_platform.data.sources import Item, Source


def from_parquet(root: Path, reading: Reading) -> Source:
    """The rows of every split at `root`. Raises `InputError` where two splits name different classes."""
    splits: dict[str, list[Item]] = {}
    blocks: dict[str, list[int]] = {}
    classes: tuple[str, ...] = ()
    identity = ""
    for split in split_names(root):
        dataset = open_dataset(root, split, reading)
        identity += dataset.fingerprint
        classes = _same(root, classes, dataset.classes)
        splits[split] = [Item(f"{split}/{row:09d}", -1, str(root), row) for row in range(dataset.rows)]
        blocks[split] = dataset.row_group_sizes.tolist()
    return Source(kind="parquet", splits=splits, classes=classes, blocks=blocks, identity=identity)


def _same(root: Path, first: tuple[str, ...], second: Iterable[str]) -> tuple[str, ...]:
    second = tuple(second)
    if first and second and first != second:
        raise InputError(f"{root}: its splits have different classes: pack them one by one")
    return first or second
