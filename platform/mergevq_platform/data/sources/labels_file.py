"""A labels file: rows of image and class, matched with the images of a source."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mergevq.errors import InputError
from mergevq.text_files import read_text
from mergevq_platform.data.sources.image_names import Image, ImageNames, same_name
from mergevq_platform.data.sources.labels_table import NUMBER, class_column, header_of, rows_and_files
from mergevq_platform.data.sources.summary import counted

SPLIT_NAMES = {"split", "splits", "set", "subset", "partition", "fold", "phase"}
# Kaggle's ImageNet: a class and its box, for each object of the image.
_BOXES = re.compile(r"(n\d+)((\s+-?\d+(\.\d+)?){4}\s*)(n\d+((\s+-?\d+(\.\d+)?){4}\s*))*")


@dataclass(frozen=True)
class Labels:
    """The labels that a labels file gives to the images of a source."""

    file: Path
    column: str
    classes: dict[int, str | None]  # of images by their number; None: a row without a class
    rows: int
    strangers: int  # rows that name no image
    stranger: str  # the first of them
    splits: str | None = None  # a column that seems to name splits, which is not read

    def line(self, images: int) -> str:
        """A line for people: the file, its column, and the images that have a row."""
        said = (
            f"{self.file.name}, {self.column}: {len(self.classes):,} of {counted(images, 'image')} have a row"
        )
        rows = counted(self.strangers, "row")
        said += f"; {rows} without an image ('{self.stranger}')" if self.strangers else ""
        return said + (f"; column '{self.splits}' is not read: folders are splits" if self.splits else "")


def read_labels(
    path: Path, images: Sequence[Image], column: str | None = None, *, folder: str = ""
) -> Labels:
    """Match the rows of a CSV (separated by commas, semicolons, tabs or blanks) with images.

    An image is told by its path, by the end of it, or by a path that ends in it, with or without its ending. `column` is the
    column of classes, by name or number (from 1). `folder` is where the file lies below the source's root, if it does: images
    there are meant first. Raises `InputError` where no row names an image, a row names several, two rows of one image
    disagree, or the column of classes cannot be told.
    """
    if not path.is_file():
        raise InputError(f"no labels at {path}: name a CSV file of file names and classes")
    index = ImageNames(images, folder)
    content = read_text(path)
    if content.lstrip()[:1] in ("{", "["):
        raise InputError(f"{path} is JSON: write it as a CSV file, with lines 'file,class'")
    table, files = rows_and_files(path, content, index)
    rows = [row for row in table if len(row) > files]
    header = header_of(rows, files, index)
    wanted, title = class_column(path, rows, files, header, column)
    found: dict[int, tuple[str | None, str]] = {}
    strangers: list[str] = []
    body = rows[1:] if header else rows
    for row in body:
        cell = row[files]
        number = index.find(cell, path)
        text = _class(row[wanted]) if len(row) > wanted else None
        if number is None:
            strangers.append(cell.strip())
        elif number in found and found[number][0] != text:
            raise InputError(
                f"{path} gives '{cell.strip()}' the class '{text}' and, as '{found[number][1]}', '{found[number][0]}': "
                "keep one of the rows"
            )
        else:
            found[number] = (text, cell.strip())
    return Labels(
        file=path,
        column=title,
        classes=_numbers(path, title, {number: text for number, (text, _) in found.items()}),
        rows=len(body),
        strangers=len(strangers),
        stranger=strangers[0] if strangers else "",
        splits=next(
            (name for name in header or () if name.lower() in SPLIT_NAMES and f"'{name}'" not in title), None
        ),
    )


def in_order(names: Iterable[str]) -> list[str]:
    """Classes of a labels file in the order of their numbers: whole numbers by value, names by their letters."""
    distinct = set(names)
    if all(re.fullmatch(r"\d+", name) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


def _class(cell: str) -> str | None:
    text = same_name(cell.strip())
    if match := _BOXES.fullmatch(text):
        return match[1]
    return None if text.lower() in ("", "nan") else text


def _numbers(path: Path, title: str, classes: dict[int, str | None]) -> dict[int, str | None]:
    """Classes that are all numbers as whole ones, "2" of 2.0, and none of negative ones. Others stay as they are."""
    texts = {text for text in classes.values() if text is not None}
    if not all(NUMBER.fullmatch(text) for text in texts):
        return classes
    if broken := next((text for text in sorted(texts) if "." in text and not float(text).is_integer()), None):
        raise InputError(
            f"{path}: {title} holds {broken}, which is no class number: choose another with --label-column"
        )
    if texts == {"-1", "1"}:
        raise InputError(
            f"{path}: {title} holds -1 and 1 alone, and negative numbers mean no label: write 0 for -1 if it is a class"
        )
    return {number: _whole(text) for number, text in classes.items()}


def _whole(text: str | None) -> str | None:
    if text is None or text.startswith("-"):
        return "0" if text is not None and float(text) == 0 else None
    return text if text.isdecimal() else str(int(float(text)))
