"""Reconstructions of images as one HTML page below 5 MB, whatever their number and size."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from PIL import Image

from mergevq.errors import InputError
from mergevq.image_size import grid_of
from mergevq.metrics import Psnr, to_uint8
from mergevq.tokenizer import MergeVQ
from mergevq_platform.figures import InlineImage, ReconstructionPage, ShownReconstruction, cluster_overlay

LIMIT_BYTES = 5_000_000
LEAST_BYTES = 300  # of an image in a page with its address and its clusters, be it of one colour
LEAST_SIDE = 64  # pixels: images are not drawn smaller for the sake of the limit
BATCH = 8  # images that are encoded together


@dataclass(frozen=True)
class PageFormat:
    """How a page holds its images: as PNG, or as JPEG of a quality; at one `divisor`-th of their size."""

    quality: int | None = None
    divisor: int = 1

    def encode(self, image: np.ndarray) -> InlineImage:
        """An image (H, W, 3) uint8 as part of a page."""
        drawn = Image.fromarray(image)
        if self.divisor > 1:
            drawn = drawn.resize(_divided(drawn.size, self.divisor), Image.Resampling.BOX)
        stream = io.BytesIO()
        if self.quality is None:
            drawn.save(stream, "PNG", optimize=True)
        else:
            drawn.save(stream, "JPEG", quality=self.quality, subsampling=0, optimize=True)
        return InlineImage(stream.getvalue(), "png" if self.quality is None else "jpeg")

    def sentence(self, size: tuple[int, int]) -> str:
        """What was done to images of `size` (height, width), in one sentence."""
        if self.quality is None:
            return "Images are PNG: every pixel as it was decoded."
        said = f"Images are JPEG of quality {self.quality}"
        if self.divisor > 1:
            said += (
                f", drawn at {' × '.join(map(str, _divided(size, self.divisor)))} of {size[0]} × {size[1]} px"
            )
        return f"{said}, so that the page stays below {LIMIT_BYTES / 1e6:g} MB; PSNR is of the images before that."


def most_images(counts: int) -> int:
    """The most images that a page at so many kept counts could hold, if every one were of one colour."""
    return LIMIT_BYTES // ((1 + counts) * LEAST_BYTES)


def reconstruction_page(
    tokenizer: MergeVQ,
    views: Sequence[np.ndarray],
    names: Sequence[str],
    keeps: Sequence[int],
    *,
    title: str,
    facts: Sequence[str],
) -> tuple[ReconstructionPage, PageFormat]:
    """The page of images (H, W, 3) uint8 and how it holds them: the most faithful way that stays below `LIMIT_BYTES`.

    Raises `InputError` where there is none.
    """
    keeps = sorted(set(keeps))
    height, width = views[0].shape[:2]
    size = (height, width)
    first = list(_reconstructed(tokenizer, views[:BATCH], names, keeps))

    def page_of(form: PageFormat, images: Iterable[_Images]) -> ReconstructionPage:
        said = [*facts, form.sentence(size)]
        page = ReconstructionPage(title, said, keeps, [_counted(tokenizer, size, keep) for keep in keeps])
        for image in images:
            shown = [
                ShownReconstruction(form.encode(decoded), overlay, psnr)
                for decoded, overlay, psnr in zip(image.decoded, image.overlays, image.psnr, strict=True)
            ]
            page.add(image.name, form.encode(image.original), size, shown)
            if page.size_bytes > LIMIT_BYTES:
                break
        return page

    for form in (forms := _formats(size)):
        if (estimate := _estimate(form, page_of(form, first), views)) > LIMIT_BYTES:
            continue
        later = _reconstructed(tokenizer, views[BATCH:], names[BATCH:], keeps)
        page = page_of(form, chain(first, later))
        if page.size_bytes <= LIMIT_BYTES:
            return page, form
        estimate = page.size_bytes * len(views) / len(page.rows)
    most = max(1, int(0.9 * len(views) * LIMIT_BYTES / estimate))  # images differ in what they take
    raise InputError(
        f"{len(views)} images at {len(keeps)} kept counts do not fit into {LIMIT_BYTES / 1e6:g} MB, even as JPEG of quality "
        f"{forms[-1].quality} at {' x '.join(map(str, _divided(size, forms[-1].divisor)))} px: give about {most} images, "
        "or fewer --keep"
    )


@dataclass(frozen=True)
class _Images:
    """An image and what it became at every kept count."""

    name: str
    original: np.ndarray  # (H, W, 3) uint8
    decoded: list[np.ndarray]
    overlays: list[InlineImage]
    psnr: list[float]


@torch.inference_mode()
def _reconstructed(
    tokenizer: MergeVQ, views: Sequence[np.ndarray], names: Sequence[str], keeps: Sequence[int]
) -> Iterator[_Images]:
    for start in range(0, len(views), BATCH):
        batch = views[start : start + BATCH]
        originals = torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2).float() / 127.5 - 1
        encoded = [tokenizer.encode(originals, keep) for keep in keeps]
        decoded = [to_uint8(tokenizer.decode(code)) for code in encoded]
        exact = to_uint8(originals).double()
        psnr = [Psnr().scores(exact, images.double()).tolist() for images in decoded]
        for index, view in enumerate(batch):
            yield _Images(
                name=names[start + index],
                original=view,
                decoded=[images[index].permute(1, 2, 0).numpy() for images in decoded],
                overlays=[
                    _overlay(code.source.assignment[index], (view.shape[0], view.shape[1]))
                    for code in encoded
                ],
                psnr=[values[index] for values in psnr],
            )


def _overlay(assignment: torch.Tensor, size: tuple[int, int]) -> InlineImage:
    drawn, colours = cluster_overlay(assignment, size)
    image, stream = Image.fromarray(drawn, "P"), io.BytesIO()
    image.putpalette(colours[:, :3].tobytes())
    image.save(stream, "PNG", optimize=True, transparency=colours[:, 3].tobytes())
    return InlineImage(stream.getvalue(), "png")


def _formats(size: Sequence[int]) -> list[PageFormat]:
    # The most faithful first.
    divisors = [2**power for power in range(1, 12) if min(size) // 2**power >= LEAST_SIDE]
    return [PageFormat(), *(PageFormat(quality) for quality in (95, 85, 75))] + [
        PageFormat(75, divisor) for divisor in divisors
    ]


def _estimate(form: PageFormat, first: ReconstructionPage, views: Sequence[np.ndarray]) -> float:
    # Of the page's bytes: the first images', as many times as all originals are larger than theirs.
    sizes = [len(form.encode(view).data) for view in views]
    images = first.size_bytes - first.frame_bytes
    return first.frame_bytes + images * sum(sizes) / sum(sizes[: len(first.rows)])


def _counted(tokenizer: MergeVQ, size: tuple[int, int], keep: int) -> str:
    cells = math.prod(grid_of(size, tokenizer.config.encoder.reduction))
    bits = math.log2(tokenizer.config.quantizer.vocabulary)
    return f"{keep} of {cells}, {1 - keep / cells:.0%} merged: {keep * bits:,.0f} bits of codes"


def _divided(size: Sequence[int], divisor: int) -> tuple[int, int]:
    return size[0] // divisor, size[1] // divisor
