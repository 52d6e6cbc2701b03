"""Formats of the images that a split was packed from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from mergevq_platform.data.images.decoding import ImageTraits


@dataclass(frozen=True)
class FormatCounts:
    """Counts of images by format, with transparent pixels, and by the range of greys that they were scaled from."""

    formats: dict[str, int]  # Pillow's names
    transparent: int
    scaled: dict[str, int]  # 32-bit and float greys, by the range that was taken
    several_frames: int = 0  # animations and documents of several pages, of which the first is read

    @classmethod
    def of(cls, traits: Iterable[ImageTraits]) -> FormatCounts:
        """The counts of some images."""
        formats: Counter[str] = Counter()
        scaled: Counter[str] = Counter()
        transparent = several_frames = 0
        for each in traits:
            formats[each.format] += 1
            transparent += each.transparent
            several_frames += each.several_frames
            scaled.update([each.scaled] if each.scaled else [])
        return cls(dict(formats), transparent, dict(scaled), several_frames)

    @classmethod
    def sum(cls, several: Iterable[FormatCounts]) -> FormatCounts:
        """The sum of several counts; most frequent first."""
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
            sum(kinds.several_frames for kinds in several),
        )

    @classmethod
    def from_tree(cls, tree: dict[str, Any] | None) -> FormatCounts | None:
        """The counts in a manifest's JSON; None for one from before they were counted."""
        if tree is None:
            return None
        return cls(tree["formats"], tree["transparent"], tree["scaled"], tree.get("several_frames", 0))

    def to_tree(self) -> dict[str, Any]:
        """The counts as JSON for a manifest; images of several frames are named where there are some."""
        tree = {"formats": self.formats, "transparent": self.transparent, "scaled": self.scaled}
        return tree | ({"several_frames": self.several_frames} if self.several_frames else {})

    @property
    def plain(self) -> bool:
        """Whether every image is read as it was before backgrounds and ranges: nothing transparent, nothing scaled."""
        return not self.transparent and not self.scaled
