"""The reading of a set's images: columns and background, where its files leave a choice."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from mergevq.config import config


def _colour(value: str) -> str:
    lower = value.lower()
    if not re.fullmatch("white|black|grey|#[0-9a-f]{6}", lower):
        raise ValueError(
            f"'{value}' is no background: give white, black, grey, or a colour such as '#c0c0c0'"
        )
    return lower


Background = Annotated[str, AfterValidator(_colour)]


@config
class Reading:
    """A user's choices for reading a set; None: the set's own."""

    image_column: str | None = None  # of Parquet files: the column of encoded images
    label_column: str | None = None  # of Parquet files: the column of classes
    background: Background | None = (
        None  # what transparent pixels are composited on; none: the manifest's, else white
    )
