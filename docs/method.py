"""Draws docs/method.svg, the method on one page: `python docs/method.py`. The standard library is enough."""

from __future__ import annotations

import colorsys
import random
from pathlib import Path

TARGET = Path(__file__).with_name("method.svg")
SIZE, SIDE = 8, 16  # cells of a side of the grid, pixels of a cell
INK, GREY, BLUE = "#1f2933", "#7b8794", "#2f6f9f"
BITS = 18

# Which kept token each of the 64 grid cells went to: nine kept tokens.
SOURCE = [
    "00011111",
    "00022211",
    "30222221",
    "33224421",
    "55244421",
    "55544466",
    "77555666",
    "77788866",
]
COLOURS = {  # of what the image shows in that part: sky, a round thing, ground
    "0": "#a8cfe8",
    "1": "#c3dff0",
    "2": "#e9a03b",
    "3": "#8fbfdf",
    "4": "#d9822b",
    "5": "#8cb369",
    "6": "#a3c47f",
    "7": "#6f9a4d",
    "8": "#7fae5a",
}


def drawing() -> str:
    """The drawing as SVG."""
    top, left = 92, [24, 218, 412, 606, 812, 1006]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1160 420" width="1160" height="420" '
        'font-family="Helvetica, Arial, sans-serif" '
        f'font-size="14" fill="{INK}" role="img" aria-label="MergeVQ: encode and merge, quantize, unmerge and decode">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{INK}"/></marker></defs>',
        '<rect width="1160" height="420" rx="10" fill="#ffffff"/>',
        grid(left[0], top, image_colours(seed=1)),
        grid(left[1], top, image_colours(seed=1), opacity=0.35, outline=GREY),
        grid(left[2], top, cluster_colours(), outline="#ffffff"),
        codes(left[3], top),
        grid(left[4], top, cluster_colours(), outline="#ffffff"),
        grid(left[5], top, smooth_colours()),
    ]
    captions = ["image", "N grid tokens", "K kept tokens", "codes", "codes on the grid", "reconstruction"]
    notes = [
        "3 × H × W",
        "a vector each",
        "the source: which cell went where",
        "18 bits a kept token",
        "",
        "",
    ]
    middles = [x + SIZE * SIDE / 2 for x in left]
    middles[3] = left[3] + BITS * 8 / 2
    for middle, caption, note in zip(middles, captions, notes, strict=True):
        parts.append(text(middle, top + 150, caption, weight="bold"))
        if note:
            parts.append(text(middle, top + 168, note, size=12, fill=GREY))
    ends = [left[0] + 128, left[1] + 128, left[2] + 128, left[3] + 144, left[4] + 128]
    for (start, end), words in zip(
        zip(ends, left[1:], strict=True),
        (["convolve"], ["attend,", "merge"], ["sign", "(LFQ)"], ["unmerge"], ["decode"]),
        strict=True,
    ):
        parts.append(arrow(start + 6, top + 64, end - 6, top + 64))
        for row, word in enumerate(reversed(words)):
            parts.append(text((start + end) / 2, top + 54 - 15 * row, word, size=13))
    # The true source goes over the top from the merging to the unmerging.
    parts.append(
        path(
            f"M{middles[2]} {top - 8} C{middles[2]} 34 {middles[2] + 40} 34 {middles[3]} 34 S{middles[4]} 34 {middles[4]} {top - 8}",
            BLUE,
        )
    )
    parts.append(text(middles[3], 24, "source, remembered by the encoder", size=13, fill=BLUE))
    # Below: alignment, Source Recovery, generators.
    box = 328
    parts += [
        box_of(left[1], box, 322, ["Alignment: the summary token [CLS]", "is matched with DINOv2's"]),
        path(f"M{left[2] + 64} {top + 178} V{box - 4}", INK),
        box_of(left[3] - 32, box, 208, ["Generators: raster, MergeAR,", "random order write codes"]),
        path(f"M{middles[3]} {box - 2} V{top + 178}", INK),
        box_of(
            left[4],
            box,
            322,
            ["Source Recovery: predicts the source", "from the codes, where it is unknown"],
            BLUE,
        ),
        path(f"M{left[3] + 176} {box + 24} H{left[4] - 4}", INK),
        path(f"M{middles[4]} {box - 2} V{top + 160}", BLUE, dashed=True),
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def image_colours(seed: int) -> list[list[str]]:
    """A pixel's colour: that of its part, a little lighter or darker."""
    draw = random.Random(seed)
    return [[shade(COLOURS[part], draw.uniform(0.9, 1.08)) for part in row] for row in SOURCE]


def smooth_colours() -> list[list[str]]:
    """A decoded pixel's colour: that of its part."""
    return [[COLOURS[part] for part in row] for row in SOURCE]


def cluster_colours() -> list[list[str]]:
    """A colour for each kept token."""
    return [[cluster_colour(int(part)) for part in row] for row in SOURCE]


def cluster_colour(number: int) -> str:
    """Nine colours that can be told apart."""
    red, green, blue = colorsys.hls_to_rgb((number * 0.381) % 1, 0.62 if number % 2 else 0.5, 0.55)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def shade(colour: str, factor: float) -> str:
    """A colour, lighter (above 1) or darker."""
    values = [min(255, round(int(colour[i : i + 2], 16) * factor)) for i in (1, 3, 5)]
    return "#" + "".join(f"{value:02x}" for value in values)


def grid(x: float, y: float, colours: list[list[str]], opacity: float = 1, outline: str = "none") -> str:
    """Eight by eight cells."""
    cells = [
        f'<rect x="{x + SIDE * column}" y="{y + SIDE * row}" width="{SIDE}" height="{SIDE}" '
        f'fill="{colour}" fill-opacity="{opacity}" stroke="{outline}"/>'
        for row, line in enumerate(colours)
        for column, colour in enumerate(line)
    ]
    return "\n".join(cells)


def codes(x: float, y: float) -> str:
    """A line of bits for each of the nine kept tokens."""
    draw, parts, height = random.Random(3), [], 128 / 9
    for row in range(9):
        top = y + row * height
        parts.append(
            f'<rect x="{x}" y="{top + 1:.1f}" width="6" height="{height - 2:.1f}" fill="{cluster_colour(row)}"/>'
        )
        for bit in range(BITS):
            fill = INK if draw.random() < 0.5 else "#e4e7eb"
            parts.append(
                f'<rect x="{x + 9 + bit * 7.5:.1f}" y="{top + 1:.1f}" width="6.5" height="{height - 2:.1f}" fill="{fill}"/>'
            )
    return "\n".join(parts)


def text(x: float, y: float, words: str, size: int = 14, weight: str = "normal", fill: str = INK) -> str:
    """Words centred at x, on the line y."""
    return f'<text x="{x}" y="{y}" text-anchor="middle" font-size="{size}" font-weight="{weight}" fill="{fill}">{words}</text>'


def box_of(x: float, y: float, width: float, lines: list[str], stroke: str = INK) -> str:
    """A rounded box with lines of words."""
    words = "".join(text(x + width / 2, y + 21 + 18 * row, line, size=13) for row, line in enumerate(lines))
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="50" rx="6" fill="#f5f7fa" stroke="{stroke}"/>{words}'
    )


def arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    """A straight arrow."""
    return path(f"M{x0} {y0} L{x1} {y1}", INK)


def path(data: str, colour: str, dashed: bool = False) -> str:
    """A line that ends in an arrow's tip."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<path d="{data}" fill="none" stroke="{colour}" stroke-width="1.6"{dash} marker-end="url(#tip)"/>'


if __name__ == "__main__":
    TARGET.write_text(drawing())
