"""A tree of Parquet files as a source to be packed: the rows of each split, by number."""

from __future__ import annotations

from pathlib import Path

from mergevq_platform.data.parquet.directory import open_dataset, split_names
from mergevq_platform.data.reading import Reading
from mergevq_platform.data.sources.source import ImageSource, Item


def from_parquet(root: Path, reading: Reading) -> ImageSource:
    """The rows of every split at `root`. Raises `InputError` as `open_dataset` does."""
    splits: dict[str, list[Item]] = {}
    blocks: dict[str, list[int]] = {}
    classes: tuple[str, ...] = ()
    identity = ""
    for split in split_names(root):
        dataset = open_dataset(root, split, reading)
        identity += dataset.fingerprint
        classes = max(classes, dataset.classes, key=len)  # of one numbering: `open_dataset` sees to that
        splits[split] = [Item(f"{split}/{row:09d}", -1, str(root), row) for row in range(dataset.rows)]
        blocks[split] = dataset.row_group_sizes.tolist()
    return ImageSource(kind="parquet", splits=splits, classes=classes, blocks=blocks, identity=identity)
