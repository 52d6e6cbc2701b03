"""The images of each shard of a pack: order by seed, held-out images, cut into shards."""

from __future__ import annotations

import zlib

import numpy as np

from mergevq.errors import InputError
from mergevq.rng import Stream, permutation
from mergevq_platform.data.sources.image_source import ImageSource, Item
from mergevq_platform.data.sources.summary import named


def shuffled(
    found: ImageSource, seed: int, shard_rows: int, validation_fraction: float
) -> dict[str, list[list[Item]]]:
    """The images of each split in seeded order, cut into shards."""
    splits: dict[str, list[Item]] = {}
    for split, items in found.splits.items():
        code = zlib.crc32(split.encode())
        if split in found.blocks:
            # Whole row groups change places, and images only within a shard: so the source is read once, in big pieces.
            edges = np.concatenate([[0], np.cumsum(found.blocks[split])]).tolist()
            order = permutation(len(edges) - 1, seed, Stream.PACK_ORDER, code).tolist()
            splits[split] = [item for block in order for item in items[edges[block] : edges[block + 1]]]
        else:
            splits[split] = [
                items[i] for i in permutation(len(items), seed, Stream.PACK_ORDER, code).tolist()
            ]
    if validation_fraction and "val" not in splits:
        if "train" not in splits:
            raise InputError(
                f"validation_fraction {validation_fraction} is held out of 'train', the source has only {', '.join(splits)}: "
                "leave it out, or call the split to hold out of train"
            )
        held_out = round(len(splits["train"]) * validation_fraction)
        if not 0 < held_out < len(splits["train"]):
            raise InputError(
                f"validation_fraction {validation_fraction} of {len(splits['train'])} images leaves nothing of one: change it"
            )
        splits["val"], splits["train"] = splits["train"][:held_out], splits["train"][held_out:]
    shards: dict[str, list[list[Item]]] = {}
    for split, items in splits.items():
        shards[split] = [items[start : start + shard_rows] for start in range(0, len(items), shard_rows)]
        if found.kind == "parquet":
            for index, part in enumerate(shards[split]):
                order = permutation(
                    len(part), seed, Stream.PACK_ORDER, zlib.crc32(split.encode()), index + 1
                ).tolist()
                shards[split][index] = [part[i] for i in order]
    return shards


def only_held_out(found: ImageSource, splits: dict[str, list[list[Item]]]) -> str | None:
    """A line where classes are in `val` alone because all their images were held out."""
    if "val" in found.splits or "val" not in splits:
        return None
    train, val = ({item.label for shard in splits[split] for item in shard} for split in ("train", "val"))
    if not (alone := sorted(val - train - {-1})):
        return None
    names = named([found.classes[label] for label in alone], 3)
    return f"{len(alone):,} of {len(found.classes):,} classes have images in val alone ({names}): hold out fewer, or add images"
