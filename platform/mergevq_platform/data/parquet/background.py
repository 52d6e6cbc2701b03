"""The background that a set is read with, and whether it is part of the set's fingerprint."""

from __future__ import annotations

from mergevq.errors import InputError
from mergevq.image_size import size_text
from mergevq_platform.data.images.kinds import FormatCounts
from mergevq_platform.data.images.transparency import WHITE, colour
from mergevq_platform.data.parquet.manifest import Manifest, Split
from mergevq_platform.data.reading import Background
from mergevq_platform.data.sources.summary import counted

DROPPED = "none: alpha dropped, as this set was packed"  # what a protocol says of a set without a background


def of_manifest(name: str, manifest: Manifest, wanted: Background | None) -> Background | None:
    """The background of a packed set: its manifest's, or the wanted one where transparent pixels are still in its files.

    None for sets packed before there was a background: their alpha is dropped. Raises `InputError` where another is wanted
    of images that were flattened, and so resized, at packing.
    """
    stated = manifest.background
    if wanted is None or (stated is not None and colour(wanted) == colour(stated)):
        return stated
    if _flattened(manifest):
        found = f"on {stated}" if stated else "before transparent pixels were put on a background"
        raise InputError(
            f"data.background (or --background) is '{wanted}', but {name} was packed at {size_text(manifest.size or 0)} px "
            f"{found}: leave it out, or pack the images again with --background {wanted}"
        )
    return wanted


def of_footers(wanted: Background | None) -> Background:
    """The background of bare Parquet files: white, unless another is wanted."""
    return wanted or WHITE


def identity(background: Background | None, split: Split | None) -> list[str]:
    """The part of a fingerprint that a background adds: nothing where it changes no pixel against sets of before.

    A packed split counts its transparent images. Of bare Parquet (`split` None) they are not counted: on white it keeps the
    fingerprint that it had before there were backgrounds, so that runs go on; the caches of evaluations name the background
    beside the fingerprint.
    """
    if background is None or (split is not None and split.kinds is not None and split.kinds.plain):
        return []
    if split is None and colour(background) == colour(WHITE):
        return []
    return ["#{:02x}{:02x}{:02x}".format(*colour(background))]


def described(manifest: Manifest) -> list[tuple[str, str]]:
    """The lines of a summary on a packed set's formats, transparent pixels and deep greys, as (word, text)."""
    if manifest.source.get("kind") != "pack":
        return []
    lines = []
    kinds = FormatCounts.sum(split.kinds for split in manifest.splits.values() if split.kinds)
    images = sum(split.rows for split in manifest.splits.values())
    if kinds.formats:
        lines.append(("formats", ", ".join(f"{name} ({count:,})" for name, count in kinds.formats.items())))
    if manifest.background is None:
        lines.append(
            ("alpha", "packed before transparent pixels were composited: pack it again, to another directory")
        )
    elif kinds.transparent:
        said = f"{kinds.transparent:,} of {images:,} images with transparent pixels, on {manifest.background}"
        lines.append(("alpha", said))
    if kinds.scaled:
        greys = (f"{count:,} of {scale}" for scale, count in kinds.scaled.items())
        lines.append(("greys", "scaled to 8 bits: " + "; ".join(greys)))
    if kinds.several_frames:
        said = f"{counted(kinds.several_frames, 'image')} of several frames or pages: the first is read"
        lines.append(("frames", said))
    return lines


def _flattened(manifest: Manifest) -> bool:
    if manifest.size is None or manifest.source.get("kind") != "pack":
        return False
    kinds = [split.kinds for split in manifest.splits.values()]
    return any(item is None or item.transparent for item in kinds)
