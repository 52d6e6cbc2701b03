"""The images of a source: each as a place where its bytes are, with split and class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from mergevq_platform.data.parquet.manifest import Skipped
from mergevq_platform.data.sources.summary import SourceSummary


class Item(NamedTuple):
    """One image of a source. `offset` -1: the whole file; of Parquet sources it is the row of the split."""

    name: str  # relative to the source; kept in the shard as the image's path
    label: int
    file: str
    offset: int = -1
    size: int = -1


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """The images of each split, in an order that does not depend on the file system."""

    kind: str
    splits: dict[str, list[Item]]
    classes: tuple[str, ...]
    blocks: dict[str, list[int]] = field(default_factory=dict)  # of Parquet splits: rows of each row group
    refused: list[Skipped] = field(default_factory=list)  # members of archives that were not looked at
    identity: str = ""  # of Parquet splits: their fingerprints
    ignored: int = 0  # files that are not used; hidden ones are not counted
    understood: SourceSummary | None = None  # what is said of it


def read_item(item: Item) -> bytes:
    """The encoded bytes of an item of a folder or tar."""
    with open(item.file, "rb") as stream:
        if item.offset < 0:
            return stream.read()
        stream.seek(item.offset)
        return stream.read(item.size)
