"""Images of a source by text: its path, the end of it, or a path that ends in it, with or without its ending."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mergevq.errors import InputError
from mergevq_platform.data.sources.summary import named


class Image(NamedTuple):
    """The names of an image in a labels file: from the source's root, and within its archive."""

    name: str
    inner: str


def same_name(text: str) -> str:
    """A name as names are compared: in Unicode's composed form."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class ImageNames:
    """Images by their paths and by the ends of their paths."""

    def __init__(self, images: Sequence[Image], folder: str) -> None:
        self.images = images
        self.prefix = f"{same_name(folder)}/" if folder else ""
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
        """The number of the image that a cell of the file `path` names, None for none. Raises `InputError` for several."""
        numbers = self.candidates(cell)
        if len(numbers) > 1:
            some = named(sorted(self.images[number].name for number in numbers), 2)
            raise InputError(
                f"{path}: '{cell.strip()}' may be {some}: write the folder before the name in the file, or name one of "
                "the folders as the source"
            )
        return next(iter(numbers), None)

    def candidates(self, cell: str) -> set[int]:
        """The numbers of the images that a text may name."""
        parts = [
            part for part in same_name(cell.strip()).replace("\\", "/").split("/") if part not in ("", ".")
        ]
        name = "/".join(parts)
        if found := self.whole.get(self.prefix + name) or self.whole.get(name):
            return found
        if found := self.ends.get(name):
            beside = {number for number in found if self._beside(number)} if self.prefix else found
            return beside or found
        for start in range(1, len(parts)):  # the row's path begins above the source
            if found := self.whole.get("/".join(parts[start:])):
                return found
        return set()

    def _beside(self, number: int) -> bool:
        """Whether an image lies in the folder of the labels file, or below it."""
        return same_name(self.images[number].name).startswith(self.prefix)
