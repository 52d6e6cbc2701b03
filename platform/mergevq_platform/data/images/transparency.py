"""Transparent pixels put on a background: before an image is resized, so that no hidden colour bleeds into its edges."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageColor, ImageFile

from mergevq_platform.data.reading import Background

WHITE: Background = "white"
NAMES = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}
OPAQUE = 255
FEWER_BITS = {"L;2": 85, "L;4": 17}  # Pillow's names of 2 and 4 bits, and how it spreads them over 8


def colour(background: Background) -> tuple[int, int, int]:
    """The red, green and blue of a background."""
    if background in NAMES:
        return NAMES[background]
    red, green, blue = ImageColor.getrgb(background)[:3]
    return red, green, blue


def on_background(image: Image.Image, background: Background) -> tuple[Image.Image, bool]:
    """The image in mode RGB without transparency, and whether a pixel of it was transparent, if only in part.

    Alpha channels, palettes with transparent entries, and colour keys. What is opaque throughout keeps its pixels.
    """
    if not image.has_transparency_data:
        return _rgb(image), False
    whole = image if image.mode == "RGBA" else image.convert("RGBA")
    alpha = whole.getchannel("A")
    if alpha.getextrema()[0] == OPAQUE:
        image.info.pop("transparency", None)
        return _rgb(image), False
    return _composited(whole.convert("RGB"), alpha, background), True


def grey_on_background(
    grey: Image.Image, transparent: np.ndarray | None, background: Background
) -> tuple[Image.Image, bool]:
    """The same of a grey image (mode L) whose transparent pixels, bool (H, W), were found before it was scaled."""
    if transparent is None or not transparent.any():
        return grey.convert("RGB"), False
    alpha = Image.fromarray(np.where(transparent, np.uint8(0), np.uint8(OPAQUE)))
    return _composited(grey.convert("RGB"), alpha, background), True


def settle_colour_key(image: Image.Image) -> None:
    """Bring the transparent colour of a PNG, said in the file's own depth, to that of the opened image; before its loading.

    Of 16-bit colours Pillow keeps the upper 8 bits: colours that share them with the key become transparent with it.
    """
    key = image.info.get("transparency")
    if not isinstance(image, ImageFile.ImageFile) or image.format != "PNG" or not image.tile:
        return
    rawmode = str(image.tile[0].args)
    if isinstance(key, tuple) and rawmode == "RGB;16B":
        image.info["transparency"] = tuple(part >> 8 for part in key)
    elif isinstance(key, int) and rawmode in FEWER_BITS:
        image.info["transparency"] = key * FEWER_BITS[rawmode]


def has_value_of_key(image: Image.Image) -> np.ndarray | None:
    """The mask (H, W) bool of the transparent value in a grey image of 16 bits; None without one."""
    key = image.info.get("transparency")
    return np.asarray(image) == key if isinstance(key, int) else None


def _composited(rgb: Image.Image, alpha: Image.Image, background: Background) -> Image.Image:
    page = Image.new("RGB", rgb.size, colour(background))
    page.paste(rgb, mask=alpha)
    return page


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")
