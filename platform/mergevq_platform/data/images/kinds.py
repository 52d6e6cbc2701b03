"""What kinds of image a split was packed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mergevq_platform.data.images.decoding import ImageTraits


@dataclass(frozen=True)
class FormatCounts:
    """How many images are of which format, have transparent pixels, or were scaled from which range of greys."""

    formats: dict[str, int]  # Pillow's names
    transparent: int
    scaled: dict[str, int]  # 32-bit and float greys, by the range that was taken

    @classmethod
    def of(cls, traits: Iterable[ImageTraits]) -> FormatCounts:
        """Of some images."""
        formats: Counter[str] = Counter()
        scaled: Counter[str] = Counter()
        transparent = 0
        for each in traits:
            formats[each.format] += 1
            transparent += each.transparent
            scaled.update([each.scaled] if each.scaled else [])
        return cls(dict(formats), transparent, dict(scaled))

    @classmethod
    def sum(cls, several: Iterable[FormatCounts]) -> FormatCounts:
        """Of all together; most frequent first."""
        several = list(several)
        formats: Counter[str] = Counter()
        scaled: Counter[str] = Counter()
        for kinds in several:
            formats.update(kinds.formats)
            scaled.update(kinds.scaled)
        return cls(
            dict(formats.most_common()),
            sum(kinds.transparent for kinds in several),
            dict(scaled.most_common()),
        )

    @classmethod
    def from_tree(cls, tree: dict[str, Any] | None) -> FormatCounts | None:
        """Of a manifest's JSON; None for one from before they were counted."""
        return None if tree is None else cls(tree["formats"], tree["transparent"], tree["scaled"])

    @property
    def plain(self) -> bool:
        """Whether every image is read as it was before backgrounds and ranges: nothing transparent, nothing scaled."""
        return not self.transparent and not self.scaled
