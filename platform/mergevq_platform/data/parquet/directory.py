"""Opening of a data directory: packed shards with a manifest, or a bare tree of Hugging Face-style Parquet files."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable
from pathlib import Path

import pyarrow.fs

from mergevq.errors import InputError
from mergevq_platform.data.dataset import Dataset
from mergevq_platform.data.hub import is_at_hand
from mergevq_platform.data.parquet import background
from mergevq_platform.data.parquet.bare import open_parquet
from mergevq_platform.data.parquet.columns import Columns, bytes_field
from mergevq_platform.data.parquet.footers import Footer, Footers
from mergevq_platform.data.parquet.location import Location
from mergevq_platform.data.parquet.manifest import MANIFEST, Manifest, Split
from mergevq_platform.data.parquet.splits import canonical, files_by_split, shared_name
from mergevq_platform.data.reading import Background, Reading
from mergevq_platform.distributed.sharded_map import RECORDS


def open_dataset(path: str | Path, split: str, reading: Reading | None = None) -> Dataset:
    """A split of an image set; see `Dataset`. Names of the validation split (val, validation, …) mean the same.

    `reading` chooses columns and background where the set leaves a choice.

    Raises `InputError`, naming path and fix, for a missing directory or split, an empty, missing or changed shard.
    """
    location, name = _existing(path)
    reading = reading or Reading()
    if (manifest := read_manifest(path, location)) is not None:
        return _from_manifest(name, location, manifest, split, reading)
    return _from_footers(name, location, split, reading)


def split_names(path: str | Path) -> list[str]:
    """The splits of an image set that hold rows. Raises `InputError` for a missing directory, and where no split does."""
    location, name = _existing(path)
    if (manifest := read_manifest(path, location)) is not None:
        return list(manifest.splits)
    sizes = location.sizes()
    footers = Footers(name, location, sizes)
    found = files_by_split(name, sizes)
    footers.of(list(sizes))
    present = [split for split, files in found.items() if footers.of(files)]
    # Tables that lie beside the images are no splits; where all are tables, opening one says what is lacking.
    present = [split for split in present if _may_hold_images(footers.of(found[split])[0])] or present
    if found and not present:
        raise InputError(f"{name}: no Parquet file in it holds any rows: write the set again")
    return present


def _may_hold_images(footer: Footer) -> bool:
    return any(bytes_field(item.type) is not None for item in footer.schema)


def read_manifest(path: str | Path, location: Location | None = None) -> Manifest | None:
    """The manifest of an image set, None for bare Parquet. Raises `InputError` for a damaged one."""
    location = location or Location.of(path)
    text = location.text(MANIFEST)
    return Manifest.from_json(text, f"{path}/{MANIFEST}") if text is not None else None


def stated_background(path: str) -> Background | None:
    """The background that a set's manifest states; None where it states none, or is not at hand."""
    if not is_at_hand(path):
        return None
    try:
        manifest = read_manifest(path)
    except (InputError, OSError):
        return None
    return manifest.background if manifest else None


def _existing(path: str | Path) -> tuple[Location, str]:
    location = Location.of(path)
    name = str(path) if "://" in str(path) else location.root
    try:
        kind = location.filesystem.get_file_info(location.root).type
    except OSError as error:
        raise InputError(f"'{name}' cannot be reached: {' '.join(str(error).split())[:200]}") from None
    if kind == pyarrow.fs.FileType.NotFound:
        raise InputError(
            f"no data at {name}: make it with `mergevq data shapes DIR` or `mergevq data pack SOURCE DIR`, or correct the path"
        )
    if kind == pyarrow.fs.FileType.File:
        raise InputError(f"{name} is a file: name the directory that holds the Parquet shards")
    return location, name


def _from_manifest(
    name: str, location: Location, manifest: Manifest, wanted: str, reading: Reading
) -> Dataset:
    split = manifest.splits.get(wanted) or manifest.splits.get(canonical(wanted))
    if split is None:
        raise _missing_split(name, wanted, manifest.splits)
    _require_packed_columns(name, manifest, reading)
    _check_shards(name, location, split)
    chosen = background.of_manifest(name, manifest, reading.background)
    checksums = json.dumps(
        [
            *([shard.file, shard.rows, shard.sha256] for shard in split.shards),
            *background.identity(chosen, split),
        ]
    )
    return Dataset(
        name,
        wanted,
        split.shards,
        classes=manifest.classes,
        labelled=split.labelled,
        unlabelled=split.unlabelled,
        fingerprint=hashlib.sha256(checksums.encode()).hexdigest(),
        columns=Columns(),
        size=manifest.size,
        background=chosen,
    )


def _check_shards(name: str, location: Location, split: Split) -> None:
    sizes = location.sizes()
    for shard in split.shards:
        if shard.file not in sizes:
            raise InputError(
                f"{name}/{shard.file} is missing, though {MANIFEST} lists it: copy or pack the data again"
            )
        if sizes[shard.file] != shard.bytes:
            raise InputError(
                f"{name}/{shard.file} has {sizes[shard.file]} bytes, {MANIFEST} says {shard.bytes}: copy or pack the data again"
            )
    if not split.rows:
        raise InputError(f"{name}: the split holds no images: pack it again from a source that has some")


def _from_footers(name: str, location: Location, wanted: str, reading: Reading) -> Dataset:
    if location.filesystem.get_file_info(location.join(RECORDS)).type != pyarrow.fs.FileType.NotFound:
        raise InputError(
            f"{name} holds a pack that has not ended: run the same `mergevq data pack` command again, it goes on"
        )
    sizes = location.sizes()
    found = files_by_split(name, sizes)
    if not found:
        raise InputError(
            f"{name} holds no Parquet files: pack images with `mergevq data pack {shlex.quote(name)} DIR` and use DIR"
        )
    split = wanted if wanted in found else canonical(wanted)
    if (unnamed := shared_name(sizes)) in (wanted, split):
        split = "train"  # recipes may ask for the name that the files share
    if split not in found:
        raise _missing_split(name, wanted, found)
    notes = ["files name no split: all are train"] if unnamed is not None else []
    return open_parquet(Footers(name, location, sizes), found, split, wanted, reading, notes)


def _missing_split(name: str, wanted: str, present: Iterable[str]) -> InputError:
    return InputError(
        f"{name} has no split '{wanted}', only {', '.join(present)}: correct data.train_split or data.evaluation_split, or pack one"
    )


def _require_packed_columns(name: str, manifest: Manifest, reading: Reading) -> None:
    for key, ours in (("image_column", "image"), ("label_column", "label")):
        wanted = getattr(reading, key)
        if wanted is not None and wanted not in (ours, manifest.source.get(key, ours)):
            raise InputError(
                f"{name} is packed, and its {key} was settled then ('{manifest.source.get(key, ours)}'), not '{wanted}': leave "
                f"data.{key} out, or pack the source again with it"
            )
