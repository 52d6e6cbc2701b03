"""Descriptions for the terminal of an image set, and of images as packing would read them."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mergevq.errors import InputError
from mergevq.image_size import size_text
from mergevq_platform.data.contact_sheet import contact_sheet
from mergevq_platform.data.dataset import Dataset
from mergevq_platform.data.hub import local_folder
from mergevq_platform.data.parquet import background
from mergevq_platform.data.parquet.directory import open_dataset, read_manifest, split_names
from mergevq_platform.data.parquet.manifest import Manifest
from mergevq_platform.data.parquet.notes import noted
from mergevq_platform.data.reading import Reading
from mergevq_platform.data.sources.choices import Choices
from mergevq_platform.data.sources.layouts import Contents, contents_of, is_packed, layout_of, require_parquet
from mergevq_platform.data.sources.parquet_rows import first_labelled
from mergevq_platform.data.sources.source import find_source
from mergevq_platform.data.sources.summary import (
    SourceSummary,
    class_names,
    classes_with_images,
    counted,
    unused_lines,
)
from mergevq_platform.distributed.progress import readable_size
from mergevq_platform.distributed.sharded_map import RECORDS
from mergevq_platform.storage.hub import pinned

SKIPPED_SHOWN = 10


def describe(
    directory: str | Path,
    sheet: str | Path | None = None,
    *,
    verify: bool = False,
    choices: Choices | None = None,
) -> str:
    """Rows, classes, shards and files not used of an image set, as text of several lines; of images that are not packed,
    what packing them would understand.

    `sheet` names a PNG that gets a labelled grid of images; `verify` compares every shard with its checksum. `choices`
    decide where the files leave a choice. Raises `InputError` for a set that cannot be opened or does not match its checksums.
    """
    choices = choices or Choices()
    directory = pinned(directory, "dataset") if isinstance(directory, str) else directory
    contents = unpacked_contents(directory, choices.labels)
    if contents is not None and layout_of(str(directory), contents, choices) != "parquet":
        if sheet is not None or verify:
            raise InputError(
                f"{directory} is not packed: --sheet and --verify are for image sets; pack it with `{_pack_command(directory, choices)}`"
            )
        return _unpacked(directory, choices)
    datasets = {split: open_dataset(directory, split, choices.reading) for split in split_names(directory)}
    manifest = read_manifest(directory)
    shown = first_labelled(datasets.values()) or next(iter(datasets.values()))
    lines = [
        str(directory),
        *(_split_line(split, dataset) for split, dataset in datasets.items()),
    ]
    kind = "shorter side" if isinstance(shown.size, int) else "covered"
    size = f"{size_text(shown.size)} px ({kind})" if shown.size else "as stored"
    lines.append(f"  images    {size}, {_stored(shown)}")
    classes = shown.classes if shown.labelled else ()
    here = "://" not in str(local_folder(directory))
    images = shown.class_images() if here else ()  # one read of each shard
    lines.append(f"  classes   {classes_with_images(classes, images)}")
    lines.append(
        "  manifest  "
        + ("checksums, format mergevq-shards/1" if manifest else "none: bare Parquet, read where it is")
    )
    lines += [f"  parquet   {line}" for line in noted(dataset.notes for dataset in datasets.values())]
    lines += [f"  {word:<9} {text}" for word, text in (background.described(manifest) if manifest else ())]
    if (kept := _kept(manifest)) is not None:
        lines += kept.said()
    elif contents is not None:
        lines += unused_lines(contents.left_out.unused())
    lines += _skipped(manifest)
    if verify:
        for dataset in datasets.values():
            dataset.verify()
        lines.append("  checksums all shards match")
    if sheet is not None:
        contact_sheet(shown, sheet)
        lines.append(f"  sheet     {sheet}")
    return "\n".join(lines)


def describe_in_short(
    directory: str | Path, train: str, evaluation: str, reading: Reading | None = None
) -> str:
    """The image set of a training in few lines: splits, classes, files that are not used.

    Raises as `open_and_describe`.
    """
    return open_and_describe(directory, train, evaluation, reading)[1]


def open_and_describe(
    directory: str | Path, train: str, evaluation: str, reading: Reading | None = None
) -> tuple[Dataset, str]:
    """The training split, open, and what `describe_in_short` says.

    Raises `InputError` for a training split that cannot be opened; of the other it is said.
    """
    if (contents := unpacked_contents(directory)) is not None:
        require_parquet(str(directory), contents)
    manifest = read_manifest(directory)
    datasets = [open_dataset(directory, train, reading)]
    missing = ""
    try:
        datasets.append(open_dataset(directory, evaluation, reading))
    except InputError as error:
        missing = f"\n  no {evaluation}: {error}"
    counts = ", ".join(
        f"{dataset.split} {counted(dataset.rows, 'image')}{_unlabelled(dataset)}" for dataset in datasets
    )
    classes = next((dataset.classes for dataset in datasets if dataset.labelled), ())
    lines = [f"data: {directory}: {counts}; classes {class_names(classes, 6)}{missing}"]
    lines += [f"  {line}" for line in noted(dataset.notes for dataset in datasets)]
    kept = _kept(manifest)
    unused = kept.unused if kept else contents.left_out.unused() if contents else ()
    return datasets[0], "\n".join([*lines, *unused_lines(unused)])


def unpacked_contents(directory: str | Path, labels: Path | None = None) -> Contents | None:
    """The contents of a place of this machine, or of its cache of the Hub, that holds no packed set; None for others."""
    place = str(local_folder(directory))
    root = Path(place).expanduser().absolute()
    if "://" in place or not root.exists() or is_packed(root) or (root / RECORDS).exists():
        return None
    return contents_of(root, labels)


def _kept(manifest: Manifest | None) -> SourceSummary | None:
    """The lines on the source that a manifest keeps."""
    kept = manifest.source.get("understood") if manifest else None
    return SourceSummary.from_tree(kept) if kept else None


def _unpacked(directory: str | Path, choices: Choices) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        found = find_source(directory, choices, scratch=Path(scratch))
    assert found.understood is not None
    lines = [f"{directory}: not packed yet", *found.understood.lines()]
    return "\n".join([*lines, f"  next      {_pack_command(directory, choices)}, then use DIR"])


def _pack_command(directory: str | Path, choices: Choices) -> str:
    """The command that packs what is read here, as it is read here."""
    return f"mergevq data pack {shlex.quote(str(directory))} DIR{choices.as_options()}"


def _split_line(split: str, dataset: Dataset) -> str:
    total = sum(shard.bytes for shard in dataset.shards)
    groups = f"row groups of {_range(dataset.row_group_sizes.tolist())}"
    shards = counted(len(dataset.shards), "shard")
    rows, labels = counted(dataset.rows, "image"), _unlabelled(dataset)
    return f"  {split:<9} {rows} in {shards}, {readable_size(total)}, {groups}{labels}; fingerprint {dataset.fingerprint[:12]}"


def _unlabelled(dataset: Dataset) -> str:
    if not dataset.labelled:
        return ", no labels (no probe)"
    return f", {dataset.unlabelled:,} of them without a label" if dataset.unlabelled else ""


def _stored(dataset: Dataset) -> str:
    kinds: dict[str, int] = {}
    for row in dataset.read(range(min(32, dataset.rows))):
        kinds[_kind(row.data or b"")] = kinds.get(_kind(row.data or b""), 0) + 1
    return ", ".join(sorted(kinds, key=lambda kind: -kinds[kind]))


def _kind(data: bytes) -> str:
    known = {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"RI": "WebP", b"GI": "GIF", b"BM": "BMP"}
    return known.get(data[:2], "other")


def _skipped(manifest: Manifest | None) -> list[str]:
    items = [item for split in manifest.splits.values() for item in split.skipped] if manifest else []
    if not items:
        return []
    lines = [f"  skipped   {counted(len(items), 'file')} that could not be used:"]
    lines += [f"            {item.file} {item.reason}" for item in items[:SKIPPED_SHOWN]]
    return lines + (
        [f"            … and {len(items) - SKIPPED_SHOWN:,} more, see manifest.json"]
        if len(items) > SKIPPED_SHOWN
        else []
    )


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}-{high}"
