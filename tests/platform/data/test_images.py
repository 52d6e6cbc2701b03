"""What becomes of an image file's pixels: transparency on a background, deep greys by their range."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from mergevq_platform.data.images.decoding import ImageDecodeError, decode, decoded


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def half_seen(shape: int) -> np.ndarray:
    """Black above, transparent black below: uint8 (32, 32, shape)."""
    pixels = np.zeros((32, 32, shape), np.uint8)
    pixels[:16, :, -1] = 255
    return pixels


def palette() -> Image.Image:
    index = np.repeat(np.array([[0], [1]], np.uint8), 16, 0).repeat(32, 1)
    image = Image.fromarray(index, "P")
    image.putpalette([0, 0, 0, 0, 0, 0])
    return image


def keyed() -> Image.Image:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[16:] = (255, 0, 255)
    return Image.fromarray(pixels)


def deep(channels: int) -> bytes:
    """16-bit grey or colour with alpha as PNG, which Pillow reads but does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = np.zeros((32, 32, channels), ">u2")
    rows[:16, :, -1] = 65535
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 32, 32, 16, {2: 4, 4: 6}[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


HALF_SEEN = {
    "RGBA": lambda: encoded(half_seen(4)),
    "16-bit RGBA": lambda: deep(4),
    "16-bit LA": lambda: deep(2),
    "LA": lambda: encoded(Image.fromarray(half_seen(2), "LA")),
    "one entry of a palette": lambda: encoded(palette(), transparency=1),
    "a table of a palette": lambda: encoded(palette(), transparency=b"\xff\x00"),
    "GIF": lambda: encoded(palette(), "GIF", transparency=1),
    "colour key": lambda: encoded(keyed(), transparency=(255, 0, 255)),
    "key of grey": lambda: encoded(
        Image.fromarray(half_seen(2)[..., 0] + np.r_[[0] * 16, [9] * 16].astype(np.uint8)[:, None]),
        transparency=9,
    ),
    "key of 2-bit grey": lambda: encoded(
        Image.fromarray(np.repeat(np.array([[0], [1]], np.uint8), 16, 0).repeat(32, 1)),
        transparency=1,
        bits=2,
    ),
    "key of 1-bit grey": lambda: encoded(
        Image.fromarray(np.repeat(np.array([[False], [True]]), 16, 0).repeat(32, 1)), transparency=1
    ),
    "key of 16-bit grey": lambda: encoded(
        np.repeat(np.array([[0], [40_000]], np.uint16), 16, 0).repeat(32, 1), transparency=40_000
    ),
    "WebP": lambda: encoded(half_seen(4), "WEBP", lossless=True, exact=True),
    "AVIF": lambda: encoded(half_seen(4), "AVIF", quality=100),
    "TIFF": lambda: encoded(half_seen(4), "TIFF"),
    "JPEG 2000": lambda: encoded(half_seen(4), "JPEG2000"),
}


@pytest.mark.parametrize("kind", HALF_SEEN)
def test_what_is_transparent_shows_the_background_whatever_the_kind_of_alpha(kind: str) -> None:
    data = HALF_SEEN[kind]()
    for background, value in (("white", (255, 255, 255)), ("black", (0, 0, 0)), ("#ff8000", (255, 128, 0))):
        found = decoded(data, background=background)
        pixels = np.asarray(found.image)
        assert pixels.shape == (32, 32, 3)
        assert np.abs(pixels[:15].astype(int)).max() <= 2, "black above"
        assert np.abs(pixels[17:].astype(int) - value).max() <= 2, "the background below"
        assert found.look.transparent
    assert np.array_equal(np.asarray(decode(data)), np.asarray(decode(data, background="white")))


def test_no_hidden_colour_bleeds_into_the_edge_of_a_smaller_image() -> None:
    from mergevq_platform.data import evaluation_view
    from mergevq_platform.data.images.decoding import resize_to_cover

    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    disc = np.zeros((128, 128, 4), np.uint8)
    disc[..., 1] = 255
    inside = np.clip((0.6 - np.hypot(x, y)) * 20 + 0.5, 0, 1)
    disc[inside > 0, :3] = 255
    disc[..., 3] = np.round(255 * inside)
    image = decode(encoded(disc))
    for small in (np.asarray(resize_to_cover(image, 32)), evaluation_view(image, 32)):
        assert small.min() >= 253, "white on white"


@given(
    pixels=arrays(np.uint8, (5, 7, 4)),
    mode=st.sampled_from(["RGBA", "LA", "PA-like", "P"]),
    kind=st.sampled_from(["PNG", "TIFF", "WEBP"]),
)
@settings(max_examples=120, deadline=None)
def test_an_alpha_of_255_throughout_changes_nothing(pixels: np.ndarray, mode: str, kind: str) -> None:
    pixels[..., 3] = 255
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(pixels)
    if mode == "LA":
        image = Image.fromarray(pixels[..., [0, 3]], "LA")
    elif mode in ("P", "PA-like"):
        image = Image.fromarray(pixels[..., :3]).quantize(8)
        if kind == "PNG":
            options = {
                "transparency": b"\xff" * 8 if mode == "P" else 255
            }  # all opaque, or a colour that is nowhere
    data = encoded(image, kind, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow advises against what is done here
        before = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for background in ("white", "black"):
        found = decoded(data, background=background)
        assert np.array_equal(np.asarray(found.image), before)
        assert not found.look.transparent


def test_partly_transparent_pixels_are_mixed_with_the_background() -> None:
    pixels = np.full((4, 4, 4), (200, 100, 0, 51), np.uint8)  # a fifth
    assert decode(encoded(pixels)).getpixel((1, 1)) == (244, 224, 204)
    assert decode(encoded(pixels), background="black").getpixel((1, 1)) == (40, 20, 0)


def test_sets_packed_without_a_background_keep_dropping_alpha() -> None:
    pixels = np.full((4, 4, 4), (200, 100, 0, 0), np.uint8)
    assert decode(encoded(pixels), background=None).getpixel((1, 1)) == (200, 100, 0)


RAMP = np.linspace(0, 65535, 24 * 24).reshape(24, 24).astype(np.uint16)


def pgm(values: np.ndarray, white: int) -> bytes:
    return f"P5\n{values.shape[1]} {values.shape[0]}\n{white}\n".encode() + values.astype(">u2").tobytes()


def plain_pgm(values: np.ndarray, white: int) -> bytes:
    return (
        f"P2\n{values.shape[1]} {values.shape[0]}\n{white}\n".encode()
        + " ".join(map(str, values.ravel())).encode()
    )


def twelve_bit_tiff() -> bytes:
    """12 bits a pixel, two pixels in three bytes; Pillow reads it unscaled."""
    import struct

    values = (RAMP >> 4).astype(np.uint32)
    pairs = values.reshape(-1, 2)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1
    ).astype(np.uint8)
    tags = [
        (256, 24),
        (257, 24),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, 24),
        (279, packed.size),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags
    )
    return (
        struct.pack("<2sHI", b"II", 42, 8 + packed.size) + packed.tobytes() + directory + struct.pack("<I", 0)
    )


DEEP = {
    "16-bit PNG": lambda: encoded(RAMP),
    "16-bit TIFF": lambda: encoded(RAMP, "TIFF"),
    "16-bit JPEG 2000": lambda: encoded(RAMP, "JPEG2000"),
    "16-bit PGM": lambda: pgm(RAMP, 65535),
    "12-bit PGM": lambda: pgm(RAMP >> 4, 4095),
    "10-bit plain PGM": lambda: plain_pgm(RAMP >> 6, 1023),
    "12-bit TIFF": twelve_bit_tiff,
    "int32 TIFF": lambda: encoded(RAMP.astype(np.int32), "TIFF"),
    "int32 TIFF of 8 bits": lambda: encoded((RAMP >> 8).astype(np.int32), "TIFF"),
    "float TIFF to 1": lambda: encoded((RAMP / 65535).astype(np.float32), "TIFF"),
    "float TIFF to 255": lambda: encoded((RAMP / 257).astype(np.float32), "TIFF"),
    "float TIFF to 65,535": lambda: encoded(RAMP.astype(np.float32), "TIFF"),
    "float PFM": lambda: encoded((RAMP / 65535).astype(np.float32), "PPM"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_a_grey_ramp_looks_alike_whatever_its_depth(kind: str) -> None:
    grey = np.asarray(decode(DEEP[kind]())).astype(int)
    assert len(np.unique(grey)) == 256
    assert abs(grey.mean() - 127) < 1
    assert np.abs(grey[..., 0] - (RAMP >> 8)).max() <= 1


def test_sixteen_bits_keep_the_value_that_they_had() -> None:
    for kind in ("PNG", "TIFF", "JPEG2000"):
        assert np.array_equal(np.asarray(decode(encoded(RAMP, kind)))[..., 1], RAMP >> 8)


@given(
    values=arrays(np.float32, (6, 6), elements=st.floats(0, 1, width=32)),
    top=st.sampled_from([1, 255, 65535]),
)
@settings(max_examples=60, deadline=None)
def test_scaling_is_monotone_and_covers_every_grey(values: np.ndarray, top: int) -> None:
    values = values * np.float32(top)
    values[0, 0], values[0, 1] = 0, top
    for array in (values, *([values.astype(np.int32)] if top > 1 else [])):
        grey = np.asarray(decode(encoded(array, "TIFF")))[..., 0].astype(int)
        assert (grey[0, 0], grey[0, 1]) == (0, 255)
        assert np.all(np.diff(grey.ravel()[np.argsort(array.ravel(), kind="stable")]) >= 0)


def test_white_is_zero_is_turned_round() -> None:
    data = encoded(RAMP, "TIFF", tiffinfo={262: 0})
    assert np.array_equal(np.asarray(decode(data))[..., 0], 255 - (RAMP >> 8))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[-5, 10]], np.int32), "32-bit integers from -5 to 10.*nothing says what is white"),
        (np.array([[0, 70_000]], np.int32), "to 70000"),
        (np.array([[0.0, -0.5]], np.float32), "floats from -0.5"),
        (np.array([[0.0, np.nan]], np.float32), "floats from nan"),
        (np.array([[0.0, np.inf]], np.float32), "to inf"),
        (
            np.array([[0.0, 1.02]], np.float32),
            r"floats that reach 1\.02, a little beyond the range of 0 to 1:",
        ),
        (np.array([[0.0, 260.5]], np.float32), "beyond the range of 0 to 255:"),
    ],
)
def test_a_grey_of_unknown_range_is_refused_with_its_values(values: np.ndarray, reason: str) -> None:
    with pytest.raises(ImageDecodeError, match=reason):
        decode(encoded(values, "TIFF"))


def test_what_the_bytes_were_is_told() -> None:
    assert decoded(encoded(RAMP.astype(np.int32), "TIFF"))[1] == (
        "TIFF",
        False,
        "32-bit integers of 0 to 65,535",
        False,
    )
    assert decoded(encoded(keyed(), "WEBP"))[1] == ("WEBP", False, None, False)
    assert decoded(encoded(half_seen(4)))[1] == ("PNG", True, None, False)


def test_no_other_program_is_asked_to_decode() -> None:
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ImageDecodeError, match="is not an image that Pillow knows"):
        decode(page)
