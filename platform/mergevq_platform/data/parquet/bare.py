"""A split of bare Parquet files, as anyone writes them: its columns, its classes, and notes for the reader."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import pyarrow as pa

from mergevq.errors import InputError
from mergevq_platform.data.dataset import Dataset
from mergevq_platform.data.parquet import background
from mergevq_platform.data.parquet.classes import Classes, SplitFiles, read_classes
from mergevq_platform.data.parquet.columns import NO_LABELS, Columns, choose, class_names
from mergevq_platform.data.parquet.footers import Footer, Footers
from mergevq_platform.data.parquet.label_values import NoClass, first_value
from mergevq_platform.data.parquet.manifest import Shard
from mergevq_platform.data.parquet.notes import about_columns, about_empty, about_labels
from mergevq_platform.data.parquet.splits import folder_values
from mergevq_platform.data.reading import Reading

NO_BYTES = 64  # bytes of a row below which its image may be a null; only such row groups are looked at


def open_parquet(
    footers: Footers,
    files: dict[str, list[str]],
    split: str,
    wanted: str,
    reading: Reading,
    said: Sequence[str] = (),
) -> Dataset:
    """The split `split` of the `files` of every split, called `wanted` by whoever asks; `said` are notes on its files.

    Raises `InputError` for a split without rows, columns that leave a choice or differ between files, images that are only
    referred to by path, labels that are no classes, and splits that name their classes differently.
    """
    name = footers.name
    mine = footers.of(files[split])
    if not mine:
        raise InputError(
            f"{name}: no file of its split '{wanted}' holds any rows: write it again, or ask for another"
        )
    tree = _Set(footers, files, reading)
    part = SplitFiles(mine, _one_choice(name, mine, reading))
    notes = [*said, *about_empty(footers, files, split)]
    unlabelled = reading.label_column == NO_LABELS and NO_LABELS not in (
        *mine[0].schema.names,
        *_keys(mine[0]),
    )
    if reading.label_column and part.columns.label is None and not unlabelled:
        notes.append(tree.without(reading.label_column, mine[0], wanted))
    names = tree.names(split, part)
    try:
        classes = read_classes(footers, part, lambda: tree.others(split), names)
    except NoClass as error:
        if reading.label_column or part.columns.label == "label":
            raise
        notes.append(f"'{part.columns.label}' is not read as labels: {error}")
        part = SplitFiles(mine, replace(part.columns, label=None, folders=False))
        classes = read_classes(footers, part, list, ())
    missing = _without_bytes(footers, part)
    notes = [
        *about_columns(part, _keys(mine[0]), looked_for=not reading.label_column),
        *about_labels(classes),
        *notes,
    ]
    if missing:
        rows = sum(footer.rows for footer in mine)
        notes.append(f"{missing:,} of {rows:,} images hold no bytes and cannot be read")
    return Dataset(
        name,
        wanted,
        [_shard(footer) for footer in mine],
        classes=classes.names,
        labelled=classes.labelled,
        fingerprint=_fingerprint(part, classes, reading),
        columns=part.columns,
        label_names=classes.names if classes.named else None,
        shard_labels=classes.of_files,
        unlabelled=classes.unlabelled,
        notes=notes,
        background=background.of_footers(reading.background),
    )


class _Set:
    """The other splits of a set, of which only the first file is looked at unless its labels are to be numbered."""

    def __init__(self, footers: Footers, files: dict[str, list[str]], reading: Reading) -> None:
        self.footers, self.files, self.reading = footers, files, reading

    @cached_property
    def first(self) -> dict[str, SplitFiles]:
        """The first file of each split that has rows and the columns to be read."""
        found = {}
        for split, files in self.files.items():
            footer = self.footers.first(files)
            try:
                if footer is not None:
                    found[split] = SplitFiles([footer], _choice(self.footers.name, footer, self.reading))
            except InputError:
                continue  # said where that split itself is asked for
        return found

    def others(self, split: str) -> list[SplitFiles]:
        """The other splits, whole."""
        return [
            SplitFiles(self.footers.of(self.files[other]), part.columns)
            for other, part in self.first.items()
            if other != split
        ]

    def names(self, split: str, mine: SplitFiles) -> tuple[str, ...]:
        """The names of the classes that the metadata of the splits give: the longest list, of which the others are beginnings."""
        if mine.columns.label is None:
            return ()
        longest, of = class_names(mine.footers[0].schema, mine.columns.label), split
        for other, part in self.first.items():
            names = class_names(part.footers[0].schema, part.columns.label)
            for number, (one, two) in enumerate(zip(longest, names, strict=False)):
                if one != two:
                    raise InputError(
                        f"{self.footers.name}: class {number} is '{one}' in its split '{of}' and '{two}' in '{other}': give them "
                        "the same names in the same order, or use each split from a directory of its own"
                    )
            if len(names) > len(longest):
                longest, of = names, other
        return longest

    def without(self, column: str, mine: Footer, wanted: str) -> str:
        """A line that the split lacks the label column. Raises `InputError` where every split does."""
        if any(part.columns.label == column for part in self.first.values()):
            return f"the split '{wanted}' has no column '{column}', so no labels"
        shown = ", ".join([*mine.schema.names, *(f"{key}=…" for key in _keys(mine))])
        raise InputError(
            f"{self.footers.name} has no column '{column}', only {shown}: correct data.label_column"
        )


def _choice(name: str, footer: Footer, reading: Reading) -> Columns:
    return choose(name, footer.schema, _keys(footer), reading.image_column, reading.label_column)


def _one_choice(name: str, footers: Sequence[Footer], reading: Reading) -> Columns:
    first = _choice(name, footers[0], reading)
    for footer in footers[1:]:
        if _choice(f"{name}/{footer.file}", footer, reading) != first:
            raise InputError(
                f"{name}/{footer.file} has other columns than {footers[0].file}: keep one kind of file in a directory"
            )
    return first


def _keys(footer: Footer) -> list[str]:
    return [key for key in folder_values(footer.file) if key.lower() != "split"]


def _shard(footer: Footer) -> Shard:
    groups = tuple(footer.metadata.row_group(i).num_rows for i in range(footer.metadata.num_row_groups))
    return Shard(file=footer.file, rows=footer.rows, bytes=footer.bytes, row_groups=groups)


def _fingerprint(part: SplitFiles, classes: Classes, reading: Reading) -> str:
    identity: list[object] = [[footer.file, footer.bytes, footer.digest] for footer in part.footers]
    # What is read in another way than `image` and numbers in `label` is another content of the same files.
    if part.columns.label not in (None, "label") or part.columns.folders:
        identity.append(["label", part.columns.label, part.columns.folders])
    if reading.label_column == NO_LABELS and part.columns.label is None:
        identity.append(["label", None])
    if classes.named:
        identity.append(["names", classes.names])
    if reading.image_column and reading.image_column != _default_image(part):
        identity.append(["image", reading.image_column])
    identity += background.identity(background.of_footers(reading.background), None)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def _default_image(part: SplitFiles) -> str | None:
    try:
        return choose("", part.footers[0].schema, (), None, None).image
    except InputError:
        return None


def _without_bytes(footers: Footers, part: SplitFiles) -> int:
    """Rows whose image is a null. Raises `InputError` where every row's is."""
    missing = 0
    for footer in part.footers:
        unsure = []
        for group, chunk in enumerate(footer.chunks(part.columns.bytes)):
            if chunk.statistics is not None and chunk.statistics.has_null_count:
                missing += chunk.statistics.null_count
            elif chunk.total_uncompressed_size < NO_BYTES * chunk.num_values:
                unsure.append(group)
        if unsure:
            missing += _bytes_of(footers.column(footer, part.columns.bytes, unsure), part.columns).null_count
    if missing < sum(footer.rows for footer in part.footers):
        return missing
    first = part.footers[0]
    path = None
    if part.columns.field and first.schema.field(part.columns.image).type.get_field_index("path") >= 0:
        column = footers.column(first, f"{part.columns.image}.path", [0])
        path = first_value(pa.chunked_array([chunk.field("path") for chunk in column.chunks]))
    place = f"{footers.name}/{first.file}"
    if path is None:
        raise InputError(
            f"{place} holds no images: every value of column '{part.columns.image}' is a null: write it again"
        )
    raise InputError(
        f"{place}: its images are not in it but referred to by path ({path}): write it with their bytes "
        "(`datasets.Image(decode=False)`), or pack the folder of the images"
    )


def _bytes_of(column: pa.ChunkedArray, columns: Columns) -> pa.ChunkedArray:
    if columns.field is None:
        return column
    return pa.chunked_array([chunk.field(columns.field) for chunk in column.chunks])
