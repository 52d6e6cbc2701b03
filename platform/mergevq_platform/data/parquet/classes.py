"""The classes of a split of Parquet files: one numbering for all splits of the set, and the number of images without a class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from mergevq.errors import InputError
from mergevq_platform.data.parquet.columns import Columns
from mergevq_platform.data.parquet.footers import Footer, Footers
from mergevq_platform.data.parquet.label_values import (
    BOOLEANS,
    NoClass,
    by_name,
    check_highest,
    first_value,
    kind_of,
    numbers,
    sorted_names,
    texts,
)
from mergevq_platform.data.parquet.splits import folder_values

WHOLE = re.compile(r"[+-]?\d+")


class SplitFiles(NamedTuple):
    """The files of a split that hold rows, and their columns."""

    footers: list[Footer]
    columns: Columns


@dataclass(frozen=True)
class Classes:
    """The classes of a split, as the whole set numbers them."""

    names: tuple[str, ...] = ()
    labelled: bool = False
    unlabelled: int = 0  # rows without a class
    named: bool = False  # the column holds names, not numbers
    of_files: tuple[int, ...] | None = None  # the class of each file, where folders say it


@dataclass
class _Labels:
    """The label column of a split."""

    highest: int = -1
    texts: Counter[str | None] = field(default_factory=Counter)
    unlabelled: int = 0
    named: bool = False
    where: str = ""


def read_classes(
    footers: Footers, mine: SplitFiles, others: Callable[[], list[SplitFiles]], names: tuple[str, ...]
) -> Classes:
    """The classes of `mine`. `names` are those that metadata give; without them, `others` are read, too.

    Raises `InputError` for more classes than names and for columns of several kinds, `NoClass` for values that are no classes.
    """
    rows = sum(footer.rows for footer in mine.footers)
    if mine.columns.label is None:
        return Classes(unlabelled=rows)
    found = _labels(footers, mine)
    every = [found] if names else [found, *(_labels(footers, part) for part in others())]
    _check_kinds(every)
    said = {text for labels in every for text in labels.texts if text is not None}
    if mine.columns.folders and all(WHOLE.fullmatch(text) for text in said):
        return _numbered_folders(mine, said, names, rows)
    if not found.named:
        highest = max(labels.highest for labels in every)
        names = names or tuple(str(number) for number in range(highest + 1))
        _check_names(found, names)
        return Classes(names, found.unlabelled < rows, found.unlabelled)
    if names and not said <= set(names):
        unknown = min(said - set(names))
        raise InputError(
            f"{found.where} holds '{unknown}', which the metadata's classes lack: write it again"
        )
    boolean = (
        not mine.columns.folders
        and kind_of(mine.footers[0].schema.field(mine.columns.label).type) == "boolean"
    )
    names = names or (BOOLEANS if boolean else sorted_names(said))
    known = set(names)
    unlabelled = found.unlabelled + sum(count for text, count in found.texts.items() if text not in known)
    of_files = tuple(by_name(_folders(mine), names, found.where).tolist()) if mine.columns.folders else None
    return Classes(names, unlabelled < rows, unlabelled, of_files is None, of_files)


def _labels(footers: Footers, part: SplitFiles) -> _Labels:
    column = part.columns.label
    if column is None:
        return _Labels()
    if part.columns.folders:
        return _of_folders(footers, part)
    every = [_of_column(footers, footer, column) for footer in part.footers]
    _check_kinds(every)
    whole = next((labels for labels in every if labels.highest >= 0 or labels.named), every[0])
    for labels in every:
        if labels is not whole:
            whole.texts.update(labels.texts)
            whole.highest = max(whole.highest, labels.highest)
            whole.unlabelled += labels.unlabelled
    return whole


def _of_column(footers: Footers, footer: Footer, column: str) -> _Labels:
    kind = footer.schema.field(column).type
    where = f"{footers.name}/{footer.file}: column '{column}'"
    found = _Labels(where=where)
    match kind_of(kind):
        case None:
            value = first_value(footers.column(footer, column, [0]))
            raise NoClass(
                f"{where} is {kind} ({value}), which is no class: choose another with label_column, or 'none'"
            )
        case "number":
            unsure = []
            for group, chunk in enumerate(footer.chunks(column)):
                stated = _stated(kind, chunk)
                if stated is None:
                    unsure.append(group)
                    continue
                check_highest(stated[0], where)
                found.highest = max(found.highest, stated[0])
                found.unlabelled += stated[1]
            if unsure:
                values = numbers(footers.column(footer, column, unsure), where)
                found.highest = max(found.highest, int(values.max(initial=-1)))
                found.unlabelled += int((values < 0).sum())
        case _:
            found.named = True
            found.texts.update(texts(footers.column(footer, column), where))
    return found


def _stated(kind: pa.DataType, chunk: pq.ColumnChunkMetaData) -> tuple[int, int] | None:
    """(highest number, rows without one) of a row group as its statistics say; none where they do not."""
    statistics: Any = chunk.statistics
    if not pa.types.is_integer(kind) or statistics is None or not statistics.has_min_max:
        return None
    if int(statistics.max) < 0:
        return -1, int(chunk.num_values)
    if int(statistics.min) < 0 or not statistics.has_null_count:
        return None
    return int(statistics.max), int(statistics.null_count)


def _folders(part: SplitFiles) -> list[str | None]:
    return [folder_values(footer.file)[part.columns.label or ""] or None for footer in part.footers]


def _of_folders(footers: Footers, part: SplitFiles) -> _Labels:
    found = _Labels(named=True, where=f"{footers.name}: folders '{part.columns.label}=…'")
    for footer, value in zip(part.footers, _folders(part), strict=True):
        found.texts[value] += footer.rows
    return found


def _numbered_folders(part: SplitFiles, said: set[str], names: tuple[str, ...], rows: int) -> Classes:
    """Folders label=0, label=1, …: the numbers are the classes, as they were when they still stood in a column."""
    where = f"folders '{part.columns.label}=…'"
    highest = max((int(text) for text in said), default=-1)
    check_highest(highest, where)
    names = names or tuple(str(number) for number in range(highest + 1))
    _check_names(_Labels(highest=highest, where=where), names)
    of_files = tuple(-1 if text is None else max(-1, int(text)) for text in _folders(part))
    unlabelled = sum(footer.rows for footer, label in zip(part.footers, of_files, strict=True) if label < 0)
    return Classes(names, unlabelled < rows, unlabelled, of_files=of_files)


def _check_names(found: _Labels, names: tuple[str, ...]) -> None:
    if found.highest >= len(names):
        raise InputError(
            f"{found.where} has the label {found.highest}, but its metadata names {len(names)} classes: write it again, or "
            "choose another with label_column, or 'none'"
        )


def _check_kinds(every: Sequence[_Labels]) -> None:
    some = [
        labels for labels in every if labels.highest >= 0 or any(text is not None for text in labels.texts)
    ]
    for labels in some:
        if labels.named != some[0].named:
            text, number = (labels, some[0]) if labels.named else (some[0], labels)
            raise InputError(
                f"{text.where} holds names of classes, {number.where} numbers: write one kind, or choose another with "
                "label_column, or 'none'"
            )
