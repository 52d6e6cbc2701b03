"""Notes on a set of Parquet files for its reader, a line each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa

from mergevq.errors import InputError
from mergevq_platform.data.parquet.classes import Classes, SplitFiles
from mergevq_platform.data.parquet.columns import label_columns
from mergevq_platform.data.parquet.footers import Footers
from mergevq_platform.data.parquet.label_values import kind_of

SMALL = 65_536  # bytes of a split below which it may be empty
NUMBERS = 100_000  # the most classes that a column may number and still look like labels
SHOWN_COLUMNS = 12
NO_CLASSES = {
    "width",
    "height",
    "size",
    "id",
    "idx",
    "index",
    "__index_level_0__",
    "seed",
    "year",
    "timestamp",
}


def about_columns(part: SplitFiles, folders: Sequence[str], *, looked_for: bool) -> list[str]:
    """A note on the columns that are read and, where none was chosen, on others that look like labels."""
    columns = part.columns
    where = f"folders '{columns.label}=…'" if columns.folders else f"column '{columns.label}'"
    lines = [f"images: column '{columns.image}'; labels: {where if columns.label else 'none'}"]
    if not looked_for:
        return lines
    schema = part.footers[0].schema
    others = [name for name in label_columns(schema, folders, columns.image) if name != columns.label]
    usable = [name for name in others if name not in schema.names or kind_of(schema.field(name).type)]
    if columns.label is None:
        usable = usable or [name for name in folders if len(folders) == 1] or _numbered(part)
        lines += [
            f"'{name}' is {schema.field(name).type}, not one class an image: it is not read"
            for name in others
            if name not in usable
        ]
    if len(usable) == 1:
        lines.append(f"'{usable[0]}' looks like labels and is not read: choose it with label_column")
    elif usable:
        shown = ", ".join(f"'{name}'" for name in usable[:-1])
        lines.append(
            f"{shown} and '{usable[-1]}' look like labels and are not read: choose one with label_column"
        )
    if columns.label is None and not usable:
        rest = [
            item.name
            for item in schema
            if item.name not in (columns.image, *others)
            and kind_of(item.type) in ("number", "boolean", "text")
        ]
        shown = ", ".join(rest[:SHOWN_COLUMNS]) + (", …" if len(rest) > SHOWN_COLUMNS else "")
        lines += [f"other columns: {shown}: label_column reads one"] if rest else []
    return lines


def about_labels(classes: Classes) -> list[str]:
    """The numbering of the classes, where it is not that of the files."""
    if not classes.named:
        return []
    return [f"labels are names: {len(classes.names):,} in all splits, numbered in sorted order"]


def about_empty(footers: Footers, files: dict[str, list[str]], split: str) -> list[str]:
    """Files of the split that hold no rows, and other splits that hold none."""
    full = {footer.file for footer in footers.of(files[split])}
    empty = [file for file in files[split] if file not in full]
    lines = []
    if empty:
        more = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        lines.append(f"passed over, without rows: {empty[0]}{more}")
    for other, some in files.items():
        if other == split or sum(footers.sizes[file] for file in some) > SMALL:
            continue
        try:
            if not footers.of(some):
                lines.append(f"the split '{other}' holds no rows")
        except InputError:
            continue  # said where that split itself is asked for
    return lines


def _numbered(part: SplitFiles) -> list[str]:
    """Columns of whole numbers from 0 (or -1) on that repeat, as far as the footers say."""
    rows = sum(footer.rows for footer in part.footers)
    found = []
    for item in part.footers[0].schema:
        if not pa.types.is_integer(item.type) or item.name.lower() in NO_CLASSES:
            continue
        if any(item.name not in footer.schema.names for footer in part.footers):
            continue
        chunks = [chunk for footer in part.footers for chunk in footer.chunks(item.name)]
        if any(chunk.statistics is None or not chunk.statistics.has_min_max for chunk in chunks):
            continue
        low = min(int(chunk.statistics.min) for chunk in chunks)
        high = max(int(chunk.statistics.max) for chunk in chunks)
        if low in (-1, 0) and 1 <= high < min(NUMBERS, max(2, rows // 2)):
            found.append(item.name)
    return found


def noted(notes: Iterable[Sequence[str]]) -> list[str]:
    """The notes of several splits, each line once."""
    return list(dict.fromkeys(line for some in notes for line in some))
