"""Decoding of images to RGB. Corrupt and truncated images and decompression bombs are refused."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from mergevq.image_size import ImageSize, height_width
from mergevq_platform.data.images.endings import FORMATS
from mergevq_platform.data.images.greys import UnknownRange, as_8_bits, is_deep
from mergevq_platform.data.images.transparency import (
    WHITE,
    grey_on_background,
    has_value_of_key,
    on_background,
    settle_colour_key,
)
from mergevq_platform.data.reading import Background

MAX_PIXELS = 178_956_970  # Pillow's own hard limit: 512 MiB of RGB


FIGURE = "mergevq figure"  # under Software in PNG files that we draw: they are no images of a set


class ImageDecodeError(ValueError):
    """An image that cannot be decoded; the message is the reason."""


class ImageTraits(NamedTuple):
    """Format and traits of an image's bytes."""

    format: str  # Pillow's name of the file's format
    transparent: bool  # whether a pixel was not wholly opaque
    scaled: str | None  # of 32-bit and float greys: the range that was taken
    several_frames: bool = False  # whether there are others than the first, which is read


class Decoded(NamedTuple):
    """An image in mode RGB, with the traits of its bytes."""

    image: Image.Image
    look: ImageTraits


def decode(
    data: bytes | None, *, max_pixels: int = MAX_PIXELS, background: Background | None = WHITE
) -> Image.Image:
    """The RGB image of encoded bytes, decoded in full. EXIF orientation is ignored, as ImageNet's users do.

    Transparent pixels are put on `background`; greys of more than 8 bits are scaled, see `greys.as_8_bits`. Without a
    background it is read as sets were that are packed before there was one: alpha is dropped, 32-bit greys are clipped.

    Raises `ImageDecodeError` for bytes that are missing, not an image, truncated, larger than `max_pixels`, or grey of a range
    that cannot be told.
    """
    return decoded(data, max_pixels=max_pixels, background=background).image


def decoded(
    data: bytes | None, *, max_pixels: int = MAX_PIXELS, background: Background | None = WHITE
) -> Decoded:
    """`decode`, with the traits of the bytes. Without a background nothing is known of transparency and range."""
    if not data:
        raise ImageDecodeError("holds no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked below
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = opened.size
        if width * height > max_pixels:
            raise ImageDecodeError(f"has {width} x {height} pixels, more than the limit of {max_pixels}")
        kind = opened.format or "unknown"
        if background is not None:
            settle_colour_key(opened)
        opened.load()
        if background is None:
            return Decoded(_without_background(opened), ImageTraits(kind, False, None))
        if is_deep(opened):
            grey, scaled = as_8_bits(opened)
            image, transparent = grey_on_background(grey, has_value_of_key(opened), background)
            return Decoded(image, ImageTraits(kind, transparent, scaled))
        image, transparent = on_background(opened, background)
        return Decoded(image, ImageTraits(kind, transparent, None))
    except ImageDecodeError:
        raise
    except UnknownRange as error:
        raise ImageDecodeError(str(error)) from None
    except Image.DecompressionBombError:
        raise ImageDecodeError(f"has more pixels than the limit of {min(max_pixels, MAX_PIXELS)}") from None
    except Image.UnidentifiedImageError:
        raise ImageDecodeError("is not an image that Pillow knows") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's format plugins raise whatever the broken bytes lead them to
        raise ImageDecodeError(
            f"cannot be decoded ({' '.join(str(error).split()) or type(error).__name__})"
        ) from None


def has_several_frames(data: bytes) -> bool:
    """Whether the bytes of an image hold more than the frame or page that `decode` reads, as far as they can be told."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(getattr(Image.open(io.BytesIO(data), formats=FORMATS), "is_animated", False))
    except Exception:  # a broken second frame: format plugins raise whatever it leads them to
        return True


def _without_background(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit grey to 255 instead of scaling it
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_to_cover(image: Image.Image, size: ImageSize) -> Image.Image:
    """The image at the smallest size that covers `size` (bicubic, antialiased): of a square, its shorter side is at it.

    The other side rounds to whole pixels.
    """
    (width, height), (tall, broad) = image.size, height_width(size)
    scale = cover_scale(image, size)
    if scale == 1:
        return image
    return image.resize(
        (max(broad, round(width * scale)), max(tall, round(height * scale))), Image.Resampling.BICUBIC
    )


def cover_scale(image: Image.Image, size: ImageSize) -> float:
    """The factor by which an image is resized to cover `size`."""
    (width, height), (tall, broad) = image.size, height_width(size)
    return max(tall / height, broad / width)


def encode_png(array: np.ndarray) -> bytes:
    """PNG bytes of uint8 (H, W, 3)."""
    return _encoded(Image.fromarray(array), "PNG")


def encode_like(image: Image.Image, original: bytes) -> bytes:
    """The image as JPEG (quality 95, no chroma subsampling) where `original` is a JPEG, else as PNG."""
    if original[:2] == b"\xff\xd8":
        return _encoded(image, "JPEG", quality=95, subsampling=0)
    return _encoded(image, "PNG")


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
