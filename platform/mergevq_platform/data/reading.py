"""How the images of a set are to be read, where its files leave a choice."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mergevq.config import config

Background = Annotated[str, Field(pattern=r"^(white|black|grey|#[0-9a-fA-F]{6})$")]


@config
class Reading:
    """What a user may choose of a set's reading; none: what the set itself says."""

    image_column: str | None = None  # of Parquet files: the column of encoded images
    label_column: str | None = None  # of Parquet files: the column of classes
    background: Background | None = (
        None  # what transparent pixels are composited on; none: the manifest's, else white
    )
