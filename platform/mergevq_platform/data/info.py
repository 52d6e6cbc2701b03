"""What a picture set holds: a text for the terminal and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from mergevq_platform.data import background
from mergevq_platform.data.dataset import Dataset
from mergevq_platform.data.opening import open_dataset, read_manifest, split_names
from mergevq_platform.data.pictures import FIGURE, BadPicture
from mergevq_platform.data.shards import Manifest, whole_file
from mergevq_platform.data.views import MOST_VIEWS, evaluation_view

COLUMNS, ROWS = 12, 6
SKIPPED_SHOWN = 10


def describe(directory: str | Path, sheet: str | Path | None = None, *, verify: bool = False) -> str:
    """Rows, classes, shards and skipped files of a picture set, as text of several lines.

    `sheet` names a PNG that gets a labelled grid of pictures; `verify` compares every shard with its checksum. Raises
    `InputError` for a set that cannot be opened or does not match its checksums.
    """
    datasets = {split: open_dataset(directory, split) for split in split_names(directory)}
    manifest = read_manifest(directory)
    any_split = next(iter(datasets.values()))
    lines = [str(directory), *(_split_line(split, dataset) for split, dataset in datasets.items())]
    size = f"{any_split.size} px (shorter side)" if any_split.size else "as stored"
    lines.append(f"  pictures  {size}, {_stored(any_split)}")
    lines.append(f"  classes   {_classes(any_split)}")
    lines.append(
        "  manifest  "
        + ("checksums, format mergevq-shards/1" if manifest else "none: bare Parquet, read where it is")
    )
    lines += [f"  {word:<9} {text}" for word, text in (background.described(manifest) if manifest else ())]
    lines += _skipped(manifest)
    if verify:
        for dataset in datasets.values():
            dataset.verify()
        lines.append("  checksums all shards match")
    if sheet is not None:
        contact_sheet(any_split, sheet)
        lines.append(f"  sheet     {sheet}")
    return "\n".join(lines)


def contact_sheet(dataset: Dataset, path: str | Path, *, columns: int = COLUMNS, rows: int = ROWS) -> None:
    """Write a PNG with a labelled grid of pictures, spread over the split and over its classes."""
    chosen = _spread(dataset, columns * rows)
    side = 96 if (dataset.size or 256) <= 96 else 144
    gap, caption, margin, head = 10, 20, 24, 64
    columns = min(columns, len(chosen))
    lines = -(-len(chosen) // columns)
    width = 2 * margin + columns * (side + gap) - gap
    height = head + lines * (side + caption + gap) - gap + margin
    page = Image.new("RGB", (width, height), "#ffffff")
    draw = ImageDraw.Draw(page)
    title, small = ImageFont.load_default(20), ImageFont.load_default(12)
    name = Path(str(dataset.path).rstrip("/")).name
    draw.text((margin, 18), f"{name} / {dataset.split}", fill="#1a1a1a", font=title)
    facts = f"{dataset.rows:,} pictures" + (
        f", {dataset.num_classes} classes" if dataset.labelled else ", no labels"
    )
    draw.text((width - margin, 24), facts, fill="#666666", font=small, anchor="ra")
    for place, row in enumerate(dataset.read(chosen)):
        left, top = margin + place % columns * (side + gap), head + place // columns * (side + caption + gap)
        try:
            page.paste(_thumbnail(dataset.image(row), side, dataset.size), (left, top))
        except BadPicture:
            draw.rectangle((left, top, left + side, top + side), outline="#b00020")
            draw.text((left + 6, top + 6), "unreadable", fill="#b00020", font=small)
        label = dataset.classes[row.label] if dataset.labelled and row.label >= 0 else f"{row.sample}"
        draw.text(
            (left + side // 2, top + side + 3),
            _fitted(label, side, small),
            fill="#444444",
            font=small,
            anchor="ma",
        )
    mark = PngInfo()
    mark.add_text("Software", FIGURE)
    with whole_file(Path(path)) as temporary:
        page.save(temporary, "PNG", pnginfo=mark)


def _spread(dataset: Dataset, count: int) -> list[int]:
    """Rows from a few places of the split; the classes take turns where there are labels."""
    groups = np.unique(np.linspace(0, len(dataset.row_group_sizes) - 1, 4).astype(int))
    spans = [range(dataset.row_group_starts[g], dataset.row_group_starts[g + 1]) for g in groups]
    rows = [row for span in spans for row in dataset.read(span)]
    if not dataset.labelled:
        return [rows[i].sample for i in np.unique(np.linspace(0, len(rows) - 1, count).astype(int))]
    turns: dict[int, int] = {}
    order = []
    for row in rows:
        turns[row.label] = turns.get(row.label, 0) + 1
        order.append((turns[row.label], row.label, row.sample))
    return [sample for _, _, sample in sorted(order)[:count]]


def _thumbnail(picture: Image.Image, side: int, size: int | None) -> Image.Image:
    if size and size < side:  # small pictures are shown pixel by pixel, not blurred
        if max(picture.size) > MOST_VIEWS * min(picture.size):
            picture = ImageOps.fit(picture, (min(picture.size),) * 2, Image.Resampling.NEAREST)  # the middle
        factor = -(-side // size)
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return Image.fromarray(evaluation_view(picture, side))


def _fitted(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    while font.getlength(text) > width and len(text) > 2:
        text = text[:-2] + "…"
    return text


def _split_line(split: str, dataset: Dataset) -> str:
    size = sum(shard.bytes for shard in dataset.shards)
    groups = f"row groups of {_range(dataset.row_group_sizes.tolist())}"
    shards = f"{len(dataset.shards)} shard{'s' if len(dataset.shards) > 1 else ''}"
    labels = "" if dataset.labelled else ", no labels (no probe)"
    return f"  {split:<9} {dataset.rows:,} pictures in {shards}, {_bytes(size)}, {groups}{labels}; fingerprint {dataset.fingerprint[:12]}"


def _stored(dataset: Dataset) -> str:
    kinds: dict[str, int] = {}
    for row in dataset.read(range(min(32, dataset.rows))):
        kinds[_kind(row.data or b"")] = kinds.get(_kind(row.data or b""), 0) + 1
    return ", ".join(sorted(kinds, key=lambda kind: -kinds[kind]))


def _kind(data: bytes) -> str:
    known = {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"RI": "WebP", b"GI": "GIF", b"BM": "BMP"}
    return known.get(data[:2], "other")


def _classes(dataset: Dataset) -> str:
    if not dataset.labelled:
        return "none"
    shown = ", ".join(dataset.classes[:12])
    return f"{dataset.num_classes}: {shown}" + (", …" if dataset.num_classes > 12 else "")


def _skipped(manifest: Manifest | None) -> list[str]:
    items = [item for split in manifest.splits.values() for item in split.skipped] if manifest else []
    if not items:
        return []
    lines = [f"  skipped   {len(items):,} file{'s' if len(items) > 1 else ''} that could not be used:"]
    lines += [f"            {item.file} {item.reason}" for item in items[:SKIPPED_SHOWN]]
    return lines + (
        [f"            … and {len(items) - SKIPPED_SHOWN:,} more, see manifest.json"]
        if len(items) > SKIPPED_SHOWN
        else []
    )


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}-{high}"


def _bytes(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
