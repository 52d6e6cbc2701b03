"""Files that are images: endings that Pillow opens here, and kinds by first bytes."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from PIL import Image, features

# Formats that Pillow lists but does not decode by itself: pages, drawings, films, scientific containers.
_NOT_RASTER = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "PALM", "PDF", "WMF"}
_CODECS = {"AVIF": "avif", "JPEG": "jpg", "JPEG2000": "jpg_2000", "PNG": "zlib", "WEBP": "webp"}
SNIFFED = 16  # bytes that tell a kind


def _image_endings() -> frozenset[str]:
    Image.init()
    return frozenset(
        ending.lower()
        for ending, kind in Image.registered_extensions().items()
        if kind in {*Image.OPEN, "MPO"}
        and kind not in _NOT_RASTER
        and (kind not in _CODECS or features.check(_CODECS[kind]))
    )


IMAGE_ENDINGS: frozenset[str] = _image_endings()
# What bytes may be, whatever their file is called: nothing that Pillow hands to another program, as it does EPS.
FORMATS: tuple[str, ...] = tuple(kind for kind in Image.ID if kind not in _NOT_RASTER)


def ending(name: str) -> str:
    """The ending of a file's name in lower case with its dot; "" without one."""
    return PurePosixPath(name).suffix.lower()


def named_as_image(name: str) -> bool:
    """Whether a file's name has the ending of an image, in any case."""
    return ending(name) in IMAGE_ENDINGS


def begins_as_image(first: bytes) -> bool:
    """Whether the first bytes of a file (`SNIFFED` of them) are those of a common image format."""
    return (
        first.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (first[:4] == b"RIFF" and first[8:12] == b"WEBP")
        or (first[:2] == b"BM" and first[6:10] == bytes(4))
        or (first[4:8] == b"ftyp" and first[8:12] in (b"avif", b"avis") and ".avif" in IMAGE_ENDINGS)
    )


def is_image(path: Path) -> bool:
    """Whether a file is an image: by its ending or, where it has none, by its first bytes."""
    if ending(path.name):
        return named_as_image(path.name)
    try:
        with path.open("rb") as stream:
            return begins_as_image(stream.read(SNIFFED))
    except OSError:
        return False
