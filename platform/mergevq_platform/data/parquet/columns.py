"""The columns of a Parquet file that hold the images and their classes."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from mergevq.errors import InputError
from mergevq_platform.data.parquet.label_values import kind_of

# label, labels, class_id, fine_label, category, cls, …: what people call a column of classes
USUAL = re.compile(
    r"(?:.*_)?(?:labels?|class(?:es)?|cls|targets?|categor(?:y|ies))(?:_?(?:id|idx|index|name))?"
)


NO_LABELS = "none"  # as the label column: none is read


@dataclass(frozen=True)
class Columns:
    """The columns of a Parquet file that hold the image and its label.

    `field` is the image column's field of bytes where it is a struct, none where it is bytes itself. `folders` tells that
    labels stand in the names of folders, label=0/part-0.parquet.
    """

    image: str = "image"
    field: str | None = "bytes"
    label: str | None = "label"
    folders: bool = False

    @property
    def bytes(self) -> str:
        """The leaf column of the encoded bytes, as Parquet names it."""
        return f"{self.image}.{self.field}" if self.field else self.image


def features(schema: pa.Schema) -> dict[str, Any]:
    """Hugging Face's description of the columns; empty where there is none."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return found if isinstance(found, dict) else {}
    except (KeyError, ValueError, TypeError):
        return {}


def class_names(schema: pa.Schema, column: str | None) -> tuple[str, ...]:
    """The names of the classes that the file's metadata give, in NFC; none where they give none."""
    try:
        return tuple(unicodedata.normalize("NFC", name) for name in features(schema)[column or ""]["names"])
    except (KeyError, TypeError):
        return ()


def image_column(name: str, schema: pa.Schema, wanted: str | None) -> Columns:
    """The column of encoded images: `wanted`, else `image`, else the only one that can be.

    Raises `InputError` naming the columns where there is none or a choice is left.
    """
    fields = {item.name: bytes_field(item.type) for item in schema}
    if wanted is not None:
        if wanted not in fields:
            raise InputError(
                f"{name} has no column '{wanted}', only {', '.join(fields)}: correct image_column"
            )
        if fields[wanted] is None:
            kind = schema.field(wanted).type
            raise InputError(
                f"{name}: column '{wanted}' is {kind}, which holds no encoded images: image_column must be a struct with a "
                "field 'bytes', or binary"
            )
        return Columns(image=wanted, field=fields[wanted] or None)
    structs = [column for column, field in fields.items() if field]
    flat = [column for column, field in fields.items() if field == ""]
    described = features(schema)
    for some in (
        [column for column in (*structs, *flat) if column == "image"],
        [column for column in (*structs, *flat) if column.lower() == "image"],
        [column for column in (*structs, *flat) if _type_of(described, column) == "Image"],
        structs,
        [column for column in flat if not pa.types.is_fixed_size_binary(schema.field(column).type)],
        flat,
    ):
        if len(some) > 1:
            raise InputError(
                f"{name} has several columns that may hold the images, {', '.join(some)}: choose one with image_column"
            )
        if some:
            return Columns(image=some[0], field=fields[some[0]] or None)
    shown = ", ".join(f"{item.name} ({item.type})" for item in schema)
    raise InputError(
        f"{name} needs one column 'image' (struct with a field 'bytes', or binary); its columns: {shown}"
    )


def label_columns(schema: pa.Schema, folders: Iterable[str], image: str) -> list[str]:
    """The columns, and folders key=value, that say of themselves that they are classes: described so, or called so."""
    described = features(schema)
    columns = [item.name for item in schema if item.name != image]
    return [
        column
        for column in (*columns, *(key for key in folders if key not in columns))
        if _type_of(described, column) == "ClassLabel" or _usual(column)
    ]


def choose(
    name: str, schema: pa.Schema, folders: Sequence[str], wanted_image: str | None, wanted_label: str | None
) -> Columns:
    """The columns of a file that lies in folders key=value of the keys `folders`.

    Labels are `wanted_label` (`NO_LABELS`: there are none), else `label`, else the only column that is described or called as
    classes are; a wanted one that the file lacks is none. Raises `InputError` as `image_column` does, and for two columns of
    one name.
    """
    _refuse_twins(name, schema, wanted_image, wanted_label)
    image = image_column(name, schema, wanted_image)
    if wanted_label == NO_LABELS and NO_LABELS not in (*schema.names, *folders):
        return Columns(image.image, image.field, None)
    label = wanted_label
    if label is None:
        likely = [
            column for column in label_columns(schema, folders, image.image) if _may_be_class(schema, column)
        ]
        label = "label" if "label" in (*schema.names, *folders) else likely[0] if len(likely) == 1 else None
    if label in schema.names and label != image.image:
        return Columns(image.image, image.field, label)
    if label in folders:
        return Columns(image.image, image.field, label, folders=True)
    return Columns(image.image, image.field, None)


def _refuse_twins(name: str, schema: pa.Schema, *wanted: str | None) -> None:
    for column, kind in zip(schema.names, schema.types, strict=True):
        read = column in wanted or _usual(column) or bytes_field(kind) is not None
        if read and schema.names.count(column) > 1:
            raise InputError(
                f"{name} has {schema.names.count(column)} columns '{column}': write it again with one of them"
            )


def _usual(column: str) -> bool:
    return USUAL.fullmatch(column.strip().lower().replace("-", "_").replace(" ", "_")) is not None


def _may_be_class(schema: pa.Schema, column: str) -> bool:
    return column not in schema.names or kind_of(schema.field(column).type) in ("number", "boolean", "text")


def _type_of(described: dict[str, Any], column: str) -> str | None:
    item = described.get(column)
    return item.get("_type") if isinstance(item, dict) else None


def bytes_field(kind: pa.DataType) -> str | None:
    """ "bytes" for a struct that has such a field, "" for a column of bytes, none for any other type."""
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return "bytes" if index >= 0 and bytes_field(kind.field(index).type) == "" else None
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    holds = (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )
    return "" if holds else None
