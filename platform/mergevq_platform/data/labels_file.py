"""A labels file: rows of image and class, matched with the images of a source."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mergevq.errors import InputError
from mergevq.text_files import read_text
from mergevq_platform.data.endings import named_as_image
from mergevq_platform.data.summary import counted, named

DELIMITERS = (",", ";", "\t", "|", " ")
LABEL_NAMES = {"label", "labels", "class", "classes", "target", "category", "class_name", "predictionstring"}
_SAMPLE = 2000
# Kaggle's ImageNet: a class and its box, for each object of the image.
_BOXES = re.compile(r"(n\d+)((\s+-?\d+(\.\d+)?){4}\s*)(n\d+((\s+-?\d+(\.\d+)?){4}\s*))*")


class Image(NamedTuple):
    """How an image may be called in a labels file: from the source's root, and within its archive."""

    name: str
    inner: str


@dataclass(frozen=True)
class Labels:
    """What a labels file says of the images of a source."""

    file: Path
    column: str
    classes: dict[int, str | None]  # of images by their number; None: a row without a class
    rows: int
    strangers: int  # rows that name no image
    stranger: str  # the first of them

    def line(self, images: int) -> str:
        """What was read, for people."""
        said = (
            f"{self.file.name}, {self.column}: {len(self.classes):,} of {counted(images, 'image')} have a row"
        )
        rows = counted(self.strangers, "row")
        return said + (f"; {rows} without an image ('{self.stranger}')" if self.strangers else "")


def read_labels(path: Path, images: Sequence[Image], column: str | None = None) -> Labels:
    """Match the rows of a CSV (separated by commas, semicolons, tabs or blanks) with images.

    An image is told by its path, by the end of it, or by a path that ends in it, with or without its ending. `column` is the
    column of classes, by name or number (from 1). Raises `InputError` where no row names an image, a row names several,
    two rows of one image disagree, or the column of classes cannot be told.
    """
    if not path.is_file():
        raise InputError(f"no labels at {path}: name a CSV file of file names and classes")
    index = _Index(images)
    table, files = _best(path, read_text(path), index)
    rows = [row for row in table if len(row) > files]
    header = _header(rows, files, index)
    wanted, title = _class_column(path, rows, files, header, column)
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
        classes=_without_negative({number: text for number, (text, _) in found.items()}),
        rows=len(body),
        strangers=len(strangers),
        stranger=strangers[0] if strangers else "",
    )


def same_name(text: str) -> str:
    """A name as names are compared: in Unicode's composed form."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def in_order(names: Iterable[str]) -> list[str]:
    """Classes of a labels file in the order of their numbers: whole numbers by value, names by their letters."""
    distinct = set(names)
    if all(re.fullmatch(r"\d+", name) for name in distinct):
        return sorted(distinct, key=lambda name: (int(name), name))
    return sorted(distinct)


class _Index:
    """Images by their paths and by the ends of their paths."""

    def __init__(self, images: Sequence[Image]) -> None:
        self.images = images
        self.whole: dict[str, set[int]] = {}
        self.ends: dict[str, set[int]] = {}
        for number, image in enumerate(images):
            for text in {image.name, image.inner}:
                path = same_name(text)
                for name in {path, str(PurePosixPath(path).with_suffix(""))}:
                    self.whole.setdefault(name, set()).add(number)
                    parts = name.split("/")
                    for start in range(1, len(parts)):
                        self.ends.setdefault("/".join(parts[start:]), set()).add(number)

    def find(self, cell: str, path: Path) -> int | None:
        numbers = self.candidates(cell)
        if len(numbers) > 1:
            some = named(sorted(self.images[number].name for number in numbers), 2)
            raise InputError(
                f"{path}: '{cell.strip()}' may be {some}: write the folder before the name in the file"
            )
        return next(iter(numbers), None)

    def candidates(self, cell: str) -> set[int]:
        parts = [
            part for part in same_name(cell.strip()).replace("\\", "/").split("/") if part not in ("", ".")
        ]
        name = "/".join(parts)
        if found := self.whole.get(name) or self.ends.get(name):
            return found
        for start in range(1, len(parts)):  # the row's path begins above the source
            if found := self.whole.get("/".join(parts[start:])):
                return found
        return set()


def _best(path: Path, text: str, index: _Index) -> tuple[list[list[str]], int]:
    """The rows, by the separator that gives most images a row, and the column that names them."""
    best: tuple[tuple[int, int], list[list[str]], int] | None = None
    for delimiter in DELIMITERS:
        rows = _parsed(path, text, delimiter)
        if not rows:
            continue
        for column in range(min(16, max(map(len, rows)))):
            cells = [row[column] for row in rows if len(row) > column]
            # A number that counts the rows may be the stem of an image: a name with its ending comes first.
            sample = cells[:_SAMPLE]
            rank = _named(index, sample), sum(named_as_image(cell.strip()) for cell in sample)
            if best is None or rank > best[0]:
                best = (rank, rows, column)
    if best is None:
        raise InputError(f"{path} holds no lines 'file,class'")
    (found, _), rows, column = best
    if not found and not any(index.candidates(cell) for row in rows for cell in row[:16]):
        example = next((cell for row in rows for cell in row if named_as_image(cell.strip())), rows[-1][0])
        raise InputError(
            f"{path} names none of the {counted(len(index.images), 'image')}: it says '{example.strip()}', "
            f"they are called '{index.images[0].name}': correct the names, or the source"
        )
    if not found:
        counts = [
            _named(index, [row[c] for row in rows if len(row) > c])
            for c in range(min(16, max(map(len, rows))))
        ]
        column = counts.index(max(counts))
    return rows, column


def _named(index: _Index, cells: Iterable[str]) -> int:
    return len({number for cell in cells for number in index.candidates(cell)})


def _parsed(path: Path, text: str, delimiter: str) -> list[list[str]]:
    """Rows of at least two fields."""
    if delimiter == " ":
        return [parts for line in text.splitlines() if len(parts := line.split(None, 1)) == 2]
    try:
        return [
            row
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            if len(row) >= 2 and any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file ({error}): save it as one") from None


def _header(rows: list[list[str]], files: int, index: _Index) -> list[str] | None:
    cell = rows[0][files].strip()
    if index.candidates(cell) or named_as_image(cell):
        return None
    return [title.strip() for title in rows[0]]


def _class_column(
    path: Path, rows: list[list[str]], files: int, header: list[str] | None, wanted: str | None
) -> tuple[int, str]:
    width = max(map(len, rows))
    titles = [header[c] if header and c < len(header) else "" for c in range(width)]
    others = [c for c in range(width) if c != files]
    body = rows[1:] if header else rows
    if wanted is not None:
        number = int(wanted) - 1 if wanted.isdecimal() and wanted not in titles else -1
        if wanted in titles or 0 <= number < width:
            chosen = titles.index(wanted) if wanted in titles else number
            return chosen, _title(titles, chosen)
        raise InputError(
            f"{path} has no column '{wanted}': its columns are {_titles(titles)}; correct --label-column"
        )
    others = [c for c in others if any(len(row) > c and row[c].strip() for row in body)]
    if len(others) > 1:
        known = [c for c in others if titles[c].lower() in LABEL_NAMES]
        others = (
            known
            if len(known) == 1
            else [c for c in others if not _counts_rows(body, c, titles[c])] or others
        )
    if not others:
        raise InputError(f"{path} has a column of files and none of classes: add one")
    if len(others) > 1:
        raise InputError(
            f"{path} has the columns {_titles(titles)}: say with --label-column which holds the class"
        )
    return others[0], _title(titles, others[0])


def _counts_rows(rows: list[list[str]], column: int, title: str) -> bool:
    """Whether a column without a title only numbers the rows, as pandas writes its index."""
    cells = [row[column].strip() if len(row) > column else "" for row in rows]
    return not title and any(
        all(cell == str(start + place) for place, cell in enumerate(cells)) for start in (0, 1)
    )


def _title(titles: list[str], column: int) -> str:
    return f"column '{titles[column]}'" if titles[column] else f"column {column + 1}"


def _titles(titles: list[str]) -> str:
    return ", ".join(f"'{title}'" if title else str(place) for place, title in enumerate(titles, 1))


def _class(cell: str) -> str | None:
    text = same_name(cell.strip())
    if match := _BOXES.fullmatch(text):
        return match[1]
    return text or None


def _without_negative(classes: dict[int, str | None]) -> dict[int, str | None]:
    """Negative numbers among whole ones mean: no class."""
    texts = {text for text in classes.values() if text is not None}
    if not all(re.fullmatch(r"-?\d+", text) for text in texts):
        return classes
    return {
        number: None if text is not None and text.startswith("-") else text
        for number, text in classes.items()
    }
