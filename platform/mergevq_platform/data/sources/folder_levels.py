"""The meaning of the folders above a source's images, decided once for all: a level of splits, a level of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from mergevq.errors import InputError
from mergevq_platform.data.parquet.splits import SAME_SPLIT
from mergevq_platform.data.sources.summary import named

MEANS = {
    **SAME_SPLIT,
    "trainval": "train",
}  # what is left of a set without its test images, as VOC and iNaturalist call it
SPLITS = {"train", "val", "test", *MEANS}
NO_SPLITS = "none"
_BESIDE = r"(?:ilsvrc|sets?|data|dataset|images?|imgs?|pictures?|photos?|jpe?g|png|splits?|full)*"
_SPLIT_NAME = re.compile(f"{_BESIDE}({'|'.join(sorted(SPLITS, key=len, reverse=True))}){_BESIDE}")

Folders = tuple[str, ...]


class SplitLevel(NamedTuple):
    """The depth of the folders that mean splits, from 0. Where all images share the folders above, these mean nothing."""

    depth: int
    shared: bool

    def without(self, folders: Folders) -> Folders:
        """The folders that may mean a class."""
        below = folders[self.depth + 1 :]
        return below if self.shared else (*folders[: self.depth], *below)

    def absolute(self, depth: int) -> int:
        """The depth from the source, of a depth in `without`."""
        return depth + self.depth + 1 if self.shared else depth + (depth >= self.depth)


def split_named(folder: str) -> str | None:
    """The split that a folder's name means, perhaps: "val" of Valid_Set, valid, images-val2017; None for other names."""
    if not folder.isascii():
        return None
    letters = "".join(re.findall(r"[a-z]+", folder.lower()))
    match = _SPLIT_NAME.fullmatch(letters)
    return MEANS.get(match[1], match[1]) if match else None


def split_in(archive: str) -> str | None:
    """The split that an archive's name means: "val" of ILSVRC2012_img_val. Any of its words may say so; train and val: train."""
    words = re.findall(r"[a-z]+", archive.lower())
    found = [MEANS.get(word, word) for word in words if word in SPLITS]
    if {"train", "val"} <= set(found):
        return "train"
    return found[-1] if found else split_named(archive)


def split_level(
    root: str, found: Sequence[tuple[Folders, str]], chosen: Sequence[str] | None
) -> SplitLevel | None:
    """The level of the folders that mean splits, None without any; `found` are folders and name of every image.

    `chosen` are the names of the folders that are splits, or "none". Raises `InputError` where a folder may be a split or a
    class.
    """
    if chosen is not None and list(chosen) == [NO_SPLITS]:
        return None
    depth = _split_depth(root, found, chosen)
    if depth is None:
        return None
    return SplitLevel(depth, len({folders[:depth] for folders, _ in found if len(folders) > depth}) == 1)


def _split_depth(root: str, found: Sequence[tuple[Folders, str]], chosen: Sequence[str] | None) -> int | None:
    deepest = max(len(folders) for folders, _ in found)
    if chosen is not None:
        for depth in range(deepest):
            names = {folders[depth] for folders, _ in found if len(folders) > depth}
            if names & set(chosen):
                if missing := [name for name in chosen if name not in names]:
                    raise InputError(
                        f"{root}: --splits names {named(missing)}, which is no folder beside {named(sorted(names))}"
                    )
                return depth
        raise InputError(f"{root}: no folder of images is called {named(chosen)}: correct --splits")
    level: int | None = None
    for depth in range(deepest):
        names = {folders[depth] for folders, _ in found if len(folders) > depth}
        splits = sorted(name for name in names if split_named(name))
        if not splits:
            if level is not None:
                break
            continue
        if level is not None and (len(splits) < len(names) or any(len(f) <= depth for f, _ in found)):
            break  # below a level of splits, a class may be called anything
        _check_splits(root, found, depth, names, splits)
        level = depth
        if len(names) > 1:
            break
    return level


def _check_splits(
    root: str, found: Sequence[tuple[Folders, str]], depth: int, names: set[str], splits: list[str]
) -> None:
    first = splits[0]
    where = "/".join(next(f[: depth + 1] for f, _ in found if len(f) > depth and f[depth] == first))
    choice = f"--splits none takes it as a class, --splits {' '.join(splits)} as a split"
    if others := sorted(names - set(splits)):
        raise InputError(
            f"{root}: the folder '{where}' may be the split '{split_named(first)}' or a class beside {named(others, 3)}: {choice}"
        )
    if loose := next((name for folders, name in found if len(folders) <= depth), None):
        raise InputError(
            f"{root}: '{loose}' has no split or class but the folder '{where}' may be a split: move the file, or {choice}"
        )
    meaning: dict[str, str] = {}
    for name in splits:
        split = split_named(name) or name
        if split in meaning:
            raise InputError(
                f"{root}: the folders '{meaning[split]}' and '{name}' both mean the split '{split}': --splits names the ones to take"
            )
        meaning[split] = name


def class_level(
    root: str, folders: dict[str, list[Folders]], chosen: int | None, splits: SplitLevel | None
) -> int | None:
    """The depth of the class folders, in folders without the split's: the first that tells the images of `train` apart.

    `chosen` counts from 1, with the split's. None where there are no folders.
    """
    if chosen is not None:
        deepest = max(len(path) for paths in folders.values() for path in paths)
        depths = [splits.absolute(depth) if splits else depth for depth in range(deepest)]
        if chosen - 1 not in depths:
            possible = " or ".join(str(depth + 1) for depth in depths) or "none"
            raise InputError(
                f"{root}: --class-depth {chosen} has no folders of classes: it may be {possible}"
            )
        return depths.index(chosen - 1)
    trained = folders.get("train") or [path for paths in folders.values() for path in paths]
    return common_depth(trained) if any(trained) else None


def common_depth(paths: Sequence[Folders]) -> int:
    """The number of folders that all the images share before the first that tells them apart."""
    depth = 0
    while all(len(path) > depth + 1 for path in paths) and len({path[depth] for path in paths}) == 1:
        depth += 1
    return depth


def classes_at(paths: Sequence[Folders], depth: int | None) -> list[str | None]:
    """The class folder of each image, None where there is none."""
    if depth is None:
        return [None] * len(paths)
    return [path[depth] if len(path) > depth else None for path in paths]
