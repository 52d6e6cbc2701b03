"""Greys of more than 8 bits brought to 8: by the range of their kind, never clipped."""

from __future__ import annotations

import numpy as np
from PIL import Image

BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of a TIFF
WHITE_IS_ZERO = 0


class UnknownRange(ValueError):
    """A grey whose white cannot be told; the message is the reason."""


def is_deep(image: Image.Image) -> bool:
    """Whether the image is one channel of 16-bit or 32-bit integers, or of floats."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def as_8_bits(image: Image.Image) -> tuple[Image.Image, str | None]:
    """A deep grey image in mode L, and the range that was assumed where its kind leaves that open.

    16 bits (PNG, PGM, TIFF, JPEG 2000) are of 0 to 65,535, 12 bits of a TIFF of 0 to 4,095. Nothing says what is white in
    32-bit integers and floats: the smallest of 0 to 1 (floats alone), 0 to 255 and 0 to 65,535 that holds the image. Raises
    `UnknownRange` for negative values, larger ones, and such that are no numbers; and for floats that reach less than twice
    as far as a range, which are likelier to overshoot it than to belong to the next.
    """
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    taken = None
    if image.mode.startswith("I;16"):
        bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
        grey = values >> (bits - 8)
    elif image.mode == "I" and image.format in ("PPM", "PNG"):  # Pillow has scaled them to 16 bits
        grey = values >> 8
    else:
        grey, taken = _by_content(values)
    grey = grey.astype(np.uint8)
    return Image.fromarray(255 - grey if inverted else grey), taken


def _by_content(values: np.ndarray) -> tuple[np.ndarray, str]:
    lowest, highest = float(values.min()), float(values.max())  # of anything and NaN it is NaN
    floats = values.dtype.kind == "f"
    kind = "floats" if floats else "32-bit integers"
    if not lowest >= 0 or not highest <= 65535:
        raise UnknownRange(
            f"is a grey image of {kind} from {lowest:g} to {highest:g}: scale it to 8 or 16 bits, nothing says what is white"
        )
    ranges = (1, 255, 65535) if floats else (255, 65535)
    top = next(top for top in ranges if highest <= top)
    if floats and any(below < highest < 2 * below for below in ranges):
        raise UnknownRange(
            f"is a grey image of floats that reach {highest:g}, a little beyond the range of 0 to "
            f"{max(below for below in ranges if below < highest):,}: scale it to 8 or 16 bits, nothing says what is white"
        )
    match top:
        case 1:
            grey = np.rint(values.astype(np.float64) * 255)
        case 255:
            grey = np.rint(values)
        case _:
            grey = values.astype(np.int64) >> 8  # as 16-bit files are
    return grey, f"{kind} of 0 to {top:,}"
