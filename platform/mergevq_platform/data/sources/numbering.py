"""The split and the class of every image of a source, and the classes' numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mergevq.errors import InputError
from mergevq_platform.data.sources.choices import Choices, SourceImage, SourceImages
from mergevq_platform.data.sources.folder_levels import (
    Folders,
    SplitLevel,
    class_level,
    classes_at,
    common_depth,
    split_level,
    split_named,
)
from mergevq_platform.data.sources.image_names import Image, same_name
from mergevq_platform.data.sources.labels_file import Labels, in_order, read_labels

HIGHEST = 1_000_000  # more classes than this are no classes


@dataclass(frozen=True)
class LabelledImages:
    """The images of each split and their labels, -1 for none."""

    splits: dict[str, list[SourceImage]]
    labels: dict[str, list[int]]
    classes: tuple[str, ...]
    notes: list[tuple[str, str]]
    by_folder: bool  # whether folders told a class


def number_classes(root: str, collected: SourceImages, choices: Choices) -> LabelledImages:
    """Decide what the folders mean, once for all images, and number the classes.

    Raises `InputError` where a folder may be a split or a class, a split has images with and without a class, or a class is
    only in a later split.
    """
    notes: list[tuple[str, str]] = []
    splits, folders, above = _by_split(root, collected, choices)
    given = _labels(root, splits, choices, notes)
    told = collected.images[0].has_own_class
    level = (
        None if told or choices.layout == "flat" else class_level(root, folders, choices.class_depth, above)
    )
    groups: dict[str, list[str | None]] = {}
    by_folder = False
    for split, entries in splits.items():
        if any(found.name in given for found in entries):
            groups[split] = _from_file(root, split, entries, given, choices)
        elif told:
            groups[split] = [found.own_class for found in entries]
        else:
            groups[split] = _from_folders(root, split, entries, folders, level, groups)
            by_folder = by_folder or any(group is not None for group in groups[split])
    if above is not None and (different := _other_names(splits, above.depth)):
        notes.insert(0, ("splits", f"depth {above.depth + 1}: {different}"))
    if level is not None and by_folder:
        notes.insert(0, ("class at", _where(splits, folders, level, above)))
    names = {group for each in groups.values() for group in each if group is not None}
    if collected.numbers and not given:
        return _whole_numbers(root, splits, groups, notes, by_folder)
    classes = tuple(sorted(names) if by_folder else in_order(names))
    numbers: dict[str | None, int] = {None: -1, **{name: index for index, name in enumerate(classes)}}
    labels = {split: [numbers[group] for group in each] for split, each in groups.items()}
    _check_classes(root, labels, classes)
    return LabelledImages(splits, labels, classes, notes, by_folder)


def _by_split(
    root: str, collected: SourceImages, choices: Choices
) -> tuple[dict[str, list[SourceImage]], dict[str, list[Folders]], SplitLevel | None]:
    """The images of each split and the folders above them, without the split's, composed as names are compared."""
    entries = sorted(collected.images, key=lambda found: found.name)
    above = [tuple(map(same_name, found.folders)) for found in entries]
    chosen = [same_name(name) for name in choices.splits] if choices.splits is not None else None
    level = split_level(root, [(f, e.name) for f, e in zip(above, entries, strict=True)], chosen)
    splits: dict[str, list[SourceImage]] = {}
    folders: dict[str, list[Folders]] = {}
    for found, path in zip(entries, above, strict=True):
        split = "train"
        if level is not None:
            name = path[level.depth] if len(path) > level.depth else None
            if name is None or (chosen and name not in chosen):
                collected.left_out.add("images outside of the splits' folders", found.name)
                continue
            split = split_named(name) or name
            path = level.without(path)
        splits.setdefault(split, []).append(found)
        folders.setdefault(split, []).append(path)
    return splits, folders, level


def _labels(
    root: str,
    splits: dict[str, list[SourceImage]],
    choices: Choices,
    notes: list[tuple[str, str]],
) -> dict[str, str | None]:
    """Name of image → class, of the labels file."""
    if choices.labels is None:
        return {}
    everything = [found for entries in splits.values() for found in entries]
    images = [Image(found.name, found.inner) for found in everything]
    labels: Labels = read_labels(
        choices.labels, images, choices.reading.label_column, folder=_folder_of(choices.labels, root)
    )
    notes.append(("labels", labels.line(len(images))))
    return {everything[number].name: text for number, text in labels.classes.items()}


def _folder_of(file: Path, root: str) -> str:
    """The folder of a file below the root; "" for one that lies directly in it, or elsewhere."""
    folder, above = file.expanduser().resolve().parent, Path(root).resolve()
    return folder.relative_to(above).as_posix() if folder != above and folder.is_relative_to(above) else ""


def _from_file(
    root: str, split: str, entries: Sequence[SourceImage], given: dict[str, str | None], choices: Choices
) -> list[str | None]:
    bare = [found.name for found in entries if found.name not in given]
    if bare:
        raise InputError(
            f"{root}: {choices.labels} has no row for '{bare[0]}' ({len(bare):,} of {len(entries):,} images of "
            f"'{split}' have none): add it with its class, or with an empty one"
        )
    return [given[found.name] for found in entries]


def _from_folders(
    root: str,
    split: str,
    entries: Sequence[SourceImage],
    folders: dict[str, list[Folders]],
    level: int | None,
    groups: dict[str, list[str | None]],
) -> list[str | None]:
    paths = folders[split]
    classes = classes_at(paths, level)
    trained = set(classes_at(folders.get("train", []), level)) - {None}
    if split != "train" and trained and level is not None and any(paths):
        # The depth of classes is that of train; a split may have its own folders above them, where train's classes follow.
        own = classes_at(paths, common_depth(paths))
        if not set(classes) <= trained and set(own) <= trained:
            classes = own
    bare = [found.name for found, group in zip(entries, classes, strict=True) if group is None]
    if 0 < len(bare) < len(entries):
        where = "it into a class folder" if len(bare) == 1 else "them into class folders"
        raise InputError(
            f"{root}: '{bare[0]}' has no class but other images of '{split}' have one ({len(bare):,} of {len(entries):,} have "
            f"none): move {where}, or away"
        )
    return classes


def _other_names(splits: dict[str, list[SourceImage]], depth: int) -> str:
    """The folders of splits that are called otherwise."""
    names = {split: entries[0].folders[depth] for split, entries in splits.items()}
    return ", ".join(f"{split} is {name}" for split, name in names.items() if split != name)


def _where(
    splits: dict[str, list[SourceImage]],
    folders: dict[str, list[Folders]],
    level: int,
    above: SplitLevel | None,
) -> str:
    split = "train" if "train" in folders else next(iter(folders))
    number = next((n for n, path in enumerate(folders[split]) if len(path) > level), None)
    if number is None:
        split, number = next(
            (s, n) for s, paths in folders.items() for n, path in enumerate(paths) if len(path) > level
        )
    below = above.absolute(level) if above else level
    deeper = any(len(path) > level + 1 for path in folders[split]) or level > 0
    example = "/".join(splits[split][number].folders[: below + 1])
    hint = "; --class-depth chooses another" if deeper else ""
    return f"depth {below + 1}: the folders like {example}{hint}"


def _whole_numbers(
    root: str,
    splits: dict[str, list[SourceImage]],
    groups: dict[str, list[str | None]],
    notes: list[tuple[str, str]],
    by_folder: bool,
) -> LabelledImages:
    """Classes that are numbers keep them."""
    labels = {split: [-1 if text is None else int(text) for text in each] for split, each in groups.items()}
    highest = max(label for each in labels.values() for label in each)
    if highest >= HIGHEST:
        split, place = next((s, each.index(highest)) for s, each in labels.items() if highest in each)
        raise InputError(
            f"{root}: '{splits[split][place].name}' has the class {highest}: it must be below {HIGHEST}"
        )
    return LabelledImages(
        splits, labels, tuple(str(number) for number in range(highest + 1)), notes, by_folder
    )


def _check_classes(root: str, labels: dict[str, list[int]], classes: tuple[str, ...]) -> None:
    trained = set(labels.get("train", [])) - {-1}
    for split, each in labels.items():
        unknown = set(each) - {-1} - trained
        if not trained or split == "train" or not unknown:
            continue
        name = classes[min(unknown)]
        if len(set(each)) == 1:
            raise InputError(
                f"{root}: the images of '{split}' lie in the one folder '{name}', 'train' has no such class: --labels says "
                "their classes, --splits with the other folders' names leaves them out"
            )
        raise InputError(f"{root}: '{split}' has the class '{name}', 'train' has not: rename or remove it")
