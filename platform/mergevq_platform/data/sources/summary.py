"""The summary of a source of images, for people and for the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from mergevq_platform.data.sources.listing import readable

HIDDEN = "hidden files"
EMPTY = "empty folders"
SHOWN_CLASSES = 12
SHOWN_REASONS = 12


@dataclass(frozen=True)
class Unused:
    """Files of one kind that were not used."""

    reason: str  # "files ending .txt"
    count: int
    example: str


def reason_of(name: str) -> str:
    """The remark on a file that is no image by its name."""
    ending = PurePosixPath(name).suffix.lower()
    return f"files ending {ending}" if ending else "files without an ending that are no images"


class LeftOut:
    """Counts files that are not used, by reason, and keeps the first of each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count a file."""
        reason, name = readable(reason), readable(name)
        before, example = self._found.get(reason, (0, name))
        self._found[reason] = (before + count, min(example, name))

    def by_ending(self, name: str) -> None:
        """Count a file that is no image by its name."""
        self.add(reason_of(name), name)

    def unused(self) -> tuple[Unused, ...]:
        """The counts, most frequent first."""
        entries = [Unused(reason, count, example) for reason, (count, example) in self._found.items()]
        return tuple(sorted(entries, key=lambda entry: (-entry.count, entry.reason)))

    @property
    def files(self) -> int:
        """The number of files counted, without hidden ones and folders."""
        return sum(count for reason, (count, _) in self._found.items() if reason not in (HIDDEN, EMPTY))


class SplitCount(NamedTuple):
    """The numbers of images of a split, in all and without a label."""

    images: int
    unlabelled: int


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """The layout of a source. What is in the manifest anyway is not kept twice: see `to_tree`."""

    layout: str  # "class folders"
    splits: Mapping[str, SplitCount] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    class_images: tuple[int, ...] = ()  # of the first split that has labels; () where they were not counted
    notes: tuple[tuple[str, str], ...] = ()  # (about what, what): where the classes lie, the labels file …
    unused: tuple[Unused, ...] = ()
    perhaps_labels: frozenset[str] = frozenset()  # of `unused`, the reasons of files that may say the classes

    def lines(self) -> list[str]:
        """Lines of text: splits, classes, notes and what was not used."""
        lines = [f"  layout    {self.layout}"]
        for name, split in self.splits.items():
            lines.append(f"  {name:<9} {counted(split.images, 'image')}{_without_label(split)}")
        lines.append(f"  classes   {classes_with_images(self.classes, self.class_images)}")
        return [*lines, *self.said()]

    def said(self) -> list[str]:
        """The lines that only the source can tell."""
        return [f"  {about:<9} {what}" for about, what in self.notes] + unused_lines(
            self.unused, self.perhaps_labels
        )

    def to_tree(self) -> dict[str, Any]:
        """The part that a manifest keeps, as JSON."""
        return {
            "layout": self.layout,
            "notes": [list(note) for note in self.notes],
            "unused": [asdict(item) for item in self.unused],
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> SourceSummary:
        """The summary of which a manifest kept `tree`."""
        return cls(
            layout=str(tree["layout"]),
            notes=tuple((str(about), str(what)) for about, what in tree["notes"]),
            unused=tuple(Unused(**item) for item in tree["unused"]),
        )


def unused_lines(unused: Sequence[Unused], perhaps_labels: frozenset[str] = frozenset()) -> list[str]:
    """A line for each reason; those of `perhaps_labels` say how such a file is read."""
    lines = [
        f"  not used  {item.reason}: {item.count:,} ({item.example}{', …' if item.count > 1 else ''})"
        + (" (a labels file? --labels NAME reads it)" if item.reason in perhaps_labels else "")
        for item in unused[:SHOWN_REASONS]
    ]
    rest = sum(item.count for item in unused[SHOWN_REASONS:])
    return [*lines, f"  not used  files of other kinds: {rest:,}"] if rest else lines


def counted(count: int, what: str) -> str:
    """ "1 image", "2,000 images"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def class_names(classes: Sequence[str], shown: int = SHOWN_CLASSES) -> str:
    """ "12: disc, ring, …"; one class or none says that there is no probe."""
    if not classes:
        return "none: no probe"
    names = ", ".join(classes[:shown]) + (", …" if len(classes) > shown else "")
    return f"{len(classes)}: {names}" + (" (one class: no probe)" if len(classes) == 1 else "")


def named(names: Iterable[str], shown: int = 5) -> str:
    """A few names, quoted, for a message."""
    first = list(names)
    return ", ".join(f"'{name}'" for name in first[:shown]) + (", …" if len(first) > shown else "")


def classes_with_images(classes: Sequence[str], images: Sequence[int]) -> str:
    """ "2: cat (3), dog (4)", or the least and the most of many classes."""
    if not images or not classes:
        return class_names(classes)
    if len(classes) <= SHOWN_CLASSES:
        return class_names([f"{name} ({count:,})" for name, count in zip(classes, images, strict=True)])
    low, high = min(images), max(images)
    each = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    return f"{class_names(classes)}; {each} images each"


def _without_label(split: SplitCount) -> str:
    if not split.unlabelled:
        return ""
    if split.unlabelled == split.images:
        return ", no labels (no probe)"
    return f", {split.unlabelled:,} of them without a label"
