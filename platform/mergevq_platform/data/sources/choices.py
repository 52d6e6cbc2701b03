"""Images of a source before their classes are numbered, and a user's choices for the reading of a source."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from mergevq_platform.data.parquet.manifest import Skipped
from mergevq_platform.data.reading import Reading
from mergevq_platform.data.sources.summary import LeftOut

Layout = Literal["folders", "flat", "archives", "webdataset", "parquet"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """A user's choices where a source is ambiguous; None: the source's own."""

    layout: Layout | None = None
    splits: tuple[str, ...] | None = None  # names of the folders that are splits; ("none",): no folder is
    class_depth: int | None = None  # how many folders below the source the classes lie, from 1
    labels: Path | None = None  # a labels file
    reading: Reading = field(default_factory=Reading)

    def as_options(self) -> str:
        """The same choices as options of the command line, each after a blank; "" where nothing is chosen."""
        given: dict[str, Sequence[object]] = {
            "--layout": [self.layout],
            "--class-depth": [self.class_depth],
            "--labels": [self.labels],
            "--label-column": [self.reading.label_column],
            "--image-column": [self.reading.image_column],
            "--background": [self.reading.background],
            "--splits": self.splits if self.splits is not None else [None],
        }
        words = [word for option, values in given.items() if None not in values for word in (option, *values)]
        return "".join(f" {shlex.quote(str(word))}" for word in words)


class SourceImage(NamedTuple):
    """An image; `folders` are the names above it that may mean a split or a class, those of archives among them."""

    folders: tuple[str, ...]
    name: str  # from the source's root, with the archives it lies in
    inner: str  # within its archive; else the same
    file: str
    offset: int = -1
    size: int = -1
    has_own_class: bool = False  # whether its class was told apart from the folders, as in WebDataset
    own_class: str | None = None


@dataclass
class SourceImages:
    """The images of a source, with notes on them."""

    layout: str  # for people
    images: list[SourceImage]
    notes: list[tuple[str, str]] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    refused: list[Skipped] = field(default_factory=list)
    numbers: bool = False  # whether the classes that were told are numbers
    kind: str = "folder"
