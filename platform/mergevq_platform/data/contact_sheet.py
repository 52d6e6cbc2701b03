"""A contact sheet: a labelled grid of the images of a set, as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

from mergevq.files import whole_file
from mergevq.hub import short_name
from mergevq.image_size import ImageSize, height_width
from mergevq_platform.data.dataset import Dataset
from mergevq_platform.data.images.decoding import FIGURE, ImageDecodeError
from mergevq_platform.data.views import MOST_VIEWS, evaluation_view

COLUMNS, ROWS = 12, 6


def contact_sheet(dataset: Dataset, path: str | Path, *, columns: int = COLUMNS, rows: int = ROWS) -> None:
    """Write a PNG with a labelled grid of images, spread over the split and over its classes."""
    chosen = _spread(dataset, columns * rows)
    tall, broad = height_width(dataset.size or 256)
    side = 96 if max(tall, broad) <= 96 else 144
    tall, broad = (max(1, round(side * length / max(tall, broad))) for length in (tall, broad))
    gap, caption, margin, head = 10, 20, 24, 64
    columns = min(columns, len(chosen))
    lines = -(-len(chosen) // columns)
    width = 2 * margin + columns * (broad + gap) - gap
    height = head + lines * (tall + caption + gap) - gap + margin
    page = Image.new("RGB", (width, height), "#ffffff")
    draw = ImageDraw.Draw(page)
    title, small = _font(18), _font(11)
    name = short_name(dataset.path)
    draw.text((margin, 18), f"{name} / {dataset.split}", fill="#1a1a1a", font=title)
    facts = f"{dataset.rows:,} images" + (
        f", {dataset.num_classes} classes" if dataset.labelled else ", no labels"
    )
    draw.text((width - margin, 24), facts, fill="#666666", font=small, anchor="ra")
    for place, row in enumerate(dataset.read(chosen)):
        left, top = margin + place % columns * (broad + gap), head + place // columns * (tall + caption + gap)
        try:
            page.paste(_thumbnail(dataset.image(row), (tall, broad), dataset.size), (left, top))
        except ImageDecodeError:
            draw.rectangle((left, top, left + broad, top + tall), outline="#b00020")
            draw.text((left + 6, top + 6), "unreadable", fill="#b00020", font=small)
        label = dataset.classes[row.label] if dataset.labelled and row.label >= 0 else f"{row.sample}"
        draw.text(
            (left + broad // 2, top + tall + 3),
            _fitted(label, broad, small),
            fill="#444444",
            font=small,
            anchor="ma",
        )
    mark = PngInfo()
    mark.add_text("Software", FIGURE)
    with whole_file(Path(path)) as temporary:
        page.save(temporary, "PNG", pnginfo=mark)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font of all our figures, which has the letters of most alphabets; Pillow's own has English ones alone."""
    import matplotlib  # takes half a second, and most processes draw nothing

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


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


def _thumbnail(image: Image.Image, cell: tuple[int, int], size: ImageSize | None) -> Image.Image:
    if size and max(height_width(size)) < max(cell):  # small images are shown pixel by pixel, not blurred
        if max(image.size) > MOST_VIEWS * min(image.size):
            image = ImageOps.fit(image, (min(image.size),) * 2, Image.Resampling.NEAREST)  # the middle
        factor = -(-max(cell) // max(height_width(size)))
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    return Image.fromarray(evaluation_view(image, cell))


def _fitted(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    while font.getlength(text) > width and len(text) > 2:
        text = text[:-2] + "…"
    return text
