"""The views of an image that a training step reads, keyed by (seed, epoch, sample) alone.

Three views after the official release (`data/base.py`): the reconstruction view, resized and cropped at random, never
flipped (a classifier's recipe may say otherwise, and have it augmented and erased); the teacher's, likewise at its own
size; the student's, a random resized crop (scale 0.08 to 1), flipped half the time. All resampling is bicubic with
antialiasing. A view is a square or any rectangle: an image is resized until it just covers it, and cropped.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image
from pydantic import BeforeValidator
from torch.nn import functional

from mergevq.config import config
from mergevq.image_size import ImageSize, height_width, parse_size, size_text
from mergevq.number_types import Fraction, Positive, WholeNumber
from mergevq.rng import Stream, uniforms
from mergevq_platform.data.augment import (
    NUMBERS,
    RandAugmentConfig,
    erase_numbers,
    erased,
    rand_augmented,
)

CROP_TRIES = 10  # as torchvision's RandomResizedCrop
RESIZING = "antialiased bicubic, the longer side rounded to whole pixels (640 x 427 at 256: 384 x 256)"
MOST_VIEWS = (
    16  # times a view's pixels: what an enlarged image may have, so that memory is bounded by the view
)


def _size_or_none(value: Any) -> int | tuple[int, int]:
    return 0 if value == 0 else parse_size(value)


OpenImageSize = Annotated[WholeNumber | tuple[WholeNumber, WholeNumber], BeforeValidator(_size_or_none)]


@config
class ViewsConfig:
    """Sizes in pixels, each one number for a square or [height, width], and the random crops of each view.
    `student_size` and `teacher_size`: none, no such view."""

    image_size: OpenImageSize = 0  # in pixels: of a square one number, else [height, width], or 48x64; 0: that of the tokenizer in training
    student_size: ImageSize | None = None
    teacher_size: ImageSize | None = None
    image_flip: Fraction = 0.0
    image_scale: tuple[Positive, Positive] | None = (
        None  # none: resized and cropped; else a random resized crop, for classifiers
    )
    image_augment: RandAugmentConfig | None = None  # for classifiers; none: no RandAugment
    image_erase: Fraction = 0.0  # how often a part is erased, for classifiers
    student_scale: tuple[Positive, Positive] = (0.08, 1.0)  # share of the image's area that a crop covers
    student_ratio: tuple[Positive, Positive] = (
        3 / 4,
        4 / 3,
    )  # width over height of a crop, times that of its view
    student_flip: Fraction = 0.5

    def __post_init__(self) -> None:
        scales = {"student_scale": self.student_scale} | (
            {"image_scale": self.image_scale} if self.image_scale else {}
        )
        for name, (low, high) in (scales | {"student_ratio": self.student_ratio}).items():
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}]: give the lower bound first")
        for name, scale in scales.items():
            if scale[1] > 1:
                raise ValueError(f"{name} is {list(scale)}: a crop cannot cover more than 1 of the image")


def make_views(
    image: Image.Image | np.ndarray, config: ViewsConfig, *, seed: int, epoch: int, sample: int
) -> dict[str, np.ndarray]:
    """The views of an RGB image (uint8 (H, W, 3)), each uint8 (h, w, 3): `image`, and `student`, `teacher` where
    the configuration gives their sizes."""
    pixels = np.array(image)
    if config.image_scale is None:
        drawn = uniforms(3, seed, Stream.IMAGE_VIEW, epoch, sample)
        view = _random_crop(pixels, config.image_size, drawn)
    else:
        drawn = uniforms(2 * CROP_TRIES + 3, seed, Stream.IMAGE_VIEW, epoch, sample)
        view = _random_resized_crop(
            pixels, config.image_size, config.image_scale, config.student_ratio, drawn
        )
    view = _flipped(view, drawn[-1] < config.image_flip)
    if (augment := config.image_augment) is not None:
        random = uniforms(augment.operations * NUMBERS, seed, Stream.AUGMENT, epoch, sample)
        view = rand_augmented(view, augment, random)
    erasing = (seed, Stream.ERASE, epoch, sample)
    if config.image_erase and uniforms(1, *erasing)[0] < config.image_erase:
        view = erased(view, uniforms(1 + erase_numbers(config.image_size), *erasing)[1:])
    views = {"image": view}
    if config.student_size is not None:
        student = uniforms(2 * CROP_TRIES + 3, seed, Stream.STUDENT_VIEW, epoch, sample)
        crop = _random_resized_crop(
            pixels, config.student_size, config.student_scale, config.student_ratio, student
        )
        views["student"] = _flipped(crop, student[-1] < config.student_flip)
    if config.teacher_size is not None:
        teacher = uniforms(3, seed, Stream.TEACHER_VIEW, epoch, sample)
        views["teacher"] = _random_crop(pixels, config.teacher_size, teacher)
    return views


def evaluation_view(image: Image.Image | np.ndarray, size: ImageSize) -> np.ndarray:
    """The image resized to cover `size` (bicubic; a square: its shorter side) and cropped in the middle: uint8 (h, w, 3)."""
    pixels, (tall, broad) = np.array(image), height_width(size)
    height, width = covering(pixels, size)
    return _part(pixels, (height, width), (height - tall) // 2, (width - broad) // 2, (tall, broad))


def evaluation_view_text(size: ImageSize) -> str:
    """The way of `evaluation_view` to `size`, in words for a protocol."""
    whole = f"shorter side to {size}" if isinstance(size, int) else f"resized to cover {size_text(size)}"
    return f"{whole} (bicubic), centre crop"


def _random_crop(pixels: np.ndarray, size: ImageSize, random: np.ndarray) -> np.ndarray:
    tall, broad = height_width(size)
    height, width = covering(pixels, size)
    top, left = int(random[0] * (height - tall + 1)), int(random[1] * (width - broad + 1))
    return _part(pixels, (height, width), top, left, (tall, broad))


def _random_resized_crop(
    pixels: np.ndarray,
    size: ImageSize,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    random: np.ndarray,
) -> np.ndarray:
    tall, broad = height_width(size)
    relative = (ratio[0] * (broad / tall), ratio[1] * (broad / tall))
    top, left, height, width = _crop_box(pixels.shape, scale, relative, random)
    return _resized(pixels[top : top + height, left : left + width], tall, broad)


def covering(pixels: np.ndarray, size: ImageSize) -> tuple[int, int]:
    """Height and width of the smallest copy of the image that covers `size`: of a square, the shorter side is at it.

    The other side rounds, as in ADM's center_crop_arr.
    """
    (height, width), (tall, broad) = pixels.shape[:2], height_width(size)
    scale = max(tall / height, broad / width)
    return max(tall, round(height * scale)), max(broad, round(width * scale))


def _part(
    pixels: np.ndarray, whole: tuple[int, int], top: int, left: int, size: tuple[int, int]
) -> np.ndarray:
    """The rectangle of `size` (height, width) at (top, left) of the image resized to (height, width) `whole`.

    An image so thin that enlarging it would make more than `MOST_VIEWS` times the view, and more than there is, is resized
    in this part alone; what lies around it counts for its edges. The values are those of the whole, but for rounding and
    clipping between the two passes.
    """
    (height, width), (tall, broad) = whole, size
    if height * width <= max(MOST_VIEWS * tall * broad, pixels.shape[0] * pixels.shape[1]):
        return _resized(pixels, height, width)[top : top + tall, left : left + broad]
    down, across = pixels.shape[0] / height, pixels.shape[1] / width
    box = (
        left * across,
        top * down,
        min((left + broad) * across, pixels.shape[1]),
        min((top + tall) * down, pixels.shape[0]),
    )
    return np.asarray(Image.fromarray(pixels).resize((broad, tall), Image.Resampling.BICUBIC, box=box))


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    if pixels.shape[:2] == (height, width):
        return pixels
    # Pillow's filter at a quarter of the time (channels-last uint8 kernels). Of noise up to one value in 200 differs, by one
    # grey level; by two it is a few in a million.
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = functional.interpolate(tensor, size=(height, width), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _crop_box(
    shape: tuple[int, ...], scale: tuple[float, float], ratio: tuple[float, float], random: np.ndarray
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random resized crop, as torchvision draws it."""
    height, width = shape[:2]
    for attempt in range(CROP_TRIES):
        area = width * height * (scale[0] + random[2 * attempt] * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + random[2 * attempt + 1] * math.log(ratio[1] / ratio[0]))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(random[-3] * (height - crop_height + 1))
            left = int(random[-2] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    # Nothing fitted: the largest crop in the middle whose shape is allowed.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width, crop_height = (
        max(1, min(width, round(height * aspect))),
        max(1, min(height, round(width / aspect))),
    )
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _flipped(pixels: np.ndarray, flip: bool) -> np.ndarray:
    return pixels[:, ::-1] if flip else pixels
