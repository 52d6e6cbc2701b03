"""The table of a labels file: its separator, the column that names images, its header, the column of classes."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from mergevq.errors import InputError
from mergevq_platform.data.images.endings import named_as_image
from mergevq_platform.data.sources.image_names import ImageNames
from mergevq_platform.data.sources.summary import counted

DELIMITERS = (",", ";", "\t", "|", " ")
LABEL_NAMES = {"label", "labels", "class", "classes", "target", "category", "class_name", "predictionstring"}
ROW_NUMBERS = {"id", "idx", "index", "unnamed: 0"}
_SAMPLE = 2000
NUMBER = re.compile(r"-?\d+(\.\d*)?")


def rows_and_files(path: Path, text: str, index: ImageNames) -> tuple[list[list[str]], int]:
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
        raise InputError(f"{path} holds no lines 'file,class': write the name of its file before each class")
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


def _named(index: ImageNames, cells: Iterable[str]) -> int:
    return len({number for cell in cells for number in index.candidates(cell)})


def _parsed(path: Path, text: str, delimiter: str) -> list[list[str]]:
    """Rows of at least two fields."""
    if delimiter == " ":
        lines = text.splitlines()
        return _numeric_table(lines) or [parts for line in lines if len(parts := line.split(None, 1)) == 2]
    try:
        return [
            row
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
            if len(row) >= 2 and any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise InputError(f"{path} is not a CSV file ({error}): save it as one") from None


def _numeric_table(lines: Sequence[str]) -> list[list[str]]:
    """Rows of a name and several numbers between blanks, with their header; none where other words follow the names.

    Of such a table no column but one is the class. A header may lack the name of the first column, as in CelebA's lists.
    """
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    width = len(rows[-1]) if rows else 0
    places = [place for place, row in enumerate(rows) if len(row) == width]
    table = [rows[place] for place in places]
    numeric = [all(NUMBER.fullmatch(cell) for cell in row[1:]) for row in table]
    if width < 3 or not any(numeric) or not all(numeric[1:]):
        return []
    above = rows[places[0] - 1] if places[0] else []
    return [["", *above], *table] if numeric[0] and len(above) == width - 1 else table


def header_of(rows: list[list[str]], files: int, index: ImageNames) -> list[str] | None:
    cell = rows[0][files].strip()
    if index.candidates(cell) or named_as_image(cell):
        return None
    return [title.strip() for title in rows[0]]


def class_column(
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
    if len(others) == 1 and _is_an_id(body, others[0], titles[others[0]], files):
        said = _title(titles, others[0])
        raise InputError(
            f"{path} has a column of files and none of classes ({said} numbers the rows): add one, or say --label-column "
            f"{titles[others[0]] or others[0] + 1} if it is the class"
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


def _is_an_id(rows: list[list[str]], column: int, title: str, files: int) -> bool:
    """Whether the only other column numbers the rows: one called so, or one without a title before the files."""
    called = title.lower() in ROW_NUMBERS or (not title and column < files)
    return called and len(rows) > 2 and _counts_rows(rows, column, "")


def _title(titles: list[str], column: int) -> str:
    return f"column '{titles[column]}'" if titles[column] else f"column {column + 1}"


def _titles(titles: list[str]) -> str:
    return ", ".join(f"'{title}'" if title else str(place) for place, title in enumerate(titles, 1))
