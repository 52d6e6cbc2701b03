"""Augmentations of classifiers' recipes besides cropping: RandAugment and random erasing, by given random numbers.

The operations and their strengths are those of timm's `rand-m9-mstd0.5-inc1`, which MAE, BEiT and SimMIM fine-tune with;
timm draws from global generators, and a view here is a function of (seed, epoch, sample) alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from pydantic import Field
from scipy.special import ndtri

from mergevq.config import config
from mergevq.image_size import ImageSize, height_width
from mergevq.number_types import Fraction, NonNegative

# Of ImageNet's values in [0, 1], per colour channel, as timm and torchvision have them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = tuple(round(255 * value) for value in IMAGENET_MEAN)  # fills what a moved image leaves open
STRONGEST = 10.0
NUMBERS = 4  # random numbers of one operation: which, whether, how strong, which way


@config
class RandAugmentConfig:
    """RandAugment (Cubuk et al. 2020) in timm's form: `operations` of fifteen, each done half the time, at a strength
    around `magnitude`, in which all of them become stronger."""

    operations: Annotated[int, Field(ge=1, le=8)] = 2
    magnitude: Annotated[float, Field(ge=0, le=STRONGEST)] = 9.0
    magnitude_std: NonNegative = 0.5  # of a normal draw for each operation
    probability: Fraction = 0.5  # of each operation


def rand_augmented(pixels: np.ndarray, settings: RandAugmentConfig, random: np.ndarray) -> np.ndarray:
    """A view uint8 (H, W, 3) after RandAugment, with numbers (operations * NUMBERS,) in [0, 1)."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    for which, whether, strength, way in random.reshape(settings.operations, NUMBERS):
        if whether < settings.probability:
            magnitude = settings.magnitude + settings.magnitude_std * float(ndtri(_inner(strength)))
            operation = OPERATIONS[int(which * len(OPERATIONS))]
            share = min(max(magnitude, 0.0), STRONGEST) / STRONGEST
            image = operation(image, share, 1 if way < 0.5 else -1)
    return np.asarray(image)


def erase_numbers(size: ImageSize) -> int:
    """The number of random numbers that `erased` needs for a view of `size`."""
    height, width = height_width(size)
    return 4 * ERASE_TRIES + 3 * height * width


def erased(pixels: np.ndarray, random: np.ndarray) -> np.ndarray:
    """A view uint8 (H, W, 3) of which a rectangle is noise (Zhong et al. 2020).

    A rectangle covers 0.02 to 1/3 of the view, height over width 0.3 to 3.3. The noise is normal with ImageNet's mean and
    deviation, number by number, which is timm's `pixel` mode but for rounding to 8 bits. `random`: `erase_numbers((H, W))`.
    """
    tall, broad = pixels.shape[:2]
    for area, aspect, top, left in random[: 4 * ERASE_TRIES].reshape(ERASE_TRIES, 4):
        share = tall * broad * (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0]))
        ratio = math.exp(math.log(ERASED_ASPECT[0]) + aspect * math.log(ERASED_ASPECT[1] / ERASED_ASPECT[0]))
        height, width = round(math.sqrt(share * ratio)), round(math.sqrt(share / ratio))
        if height >= tall or width >= broad:
            continue
        numbers = _inner(random[4 * ERASE_TRIES :][: height * width * 3].reshape(height, width, 3))
        noise = 255 * (np.array(IMAGENET_MEAN) + np.array(IMAGENET_STD) * ndtri(numbers))
        rows, columns = int(top * (tall - height + 1)), int(left * (broad - width + 1))
        pixels = pixels.copy()
        pixels[rows : rows + height, columns : columns + width] = noise.round().clip(0, 255)
        return pixels
    return pixels


ERASE_TRIES = 10
ERASED_AREA, ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)


def _inner(random: np.ndarray) -> np.ndarray:
    # Numbers in [0, 1) as numbers in (0, 1), where the normal's quantiles are finite.
    return np.clip(random, 2.0**-54, None)


# An operation takes the image, its strength in [0, 1] and a direction, 1 or -1.
Operation = Callable[[Image.Image, float, int], Image.Image]


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    # Output pixel (x, y) is the input's at (a x + b y + c, d x + e y + f).
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=GREY
    )


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, share, way: kind(image).enhance(max(0.1, 1 + 0.9 * way * share))


def _solarize_add(image: Image.Image, share: float, way: int) -> Image.Image:
    added = min(128, int(share * 110))
    return image.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


OPERATIONS: tuple[Operation, ...] = (
    lambda image, share, way: ImageOps.autocontrast(image),
    lambda image, share, way: ImageOps.equalize(image),
    lambda image, share, way: ImageOps.invert(image),
    lambda image, share, way: image.rotate(
        30 * way * share, resample=Image.Resampling.BICUBIC, fillcolor=GREY
    ),
    lambda image, share, way: ImageOps.posterize(image, max(1, 4 - int(4 * share))),  # no bit: a black image
    lambda image, share, way: ImageOps.solarize(image, 256 - min(256, int(256 * share))),
    _solarize_add,
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    lambda image, share, way: _moved(image, 1, 0.3 * way * share, 0, 0, 1, 0),
    lambda image, share, way: _moved(image, 1, 0, 0, 0.3 * way * share, 1, 0),
    lambda image, share, way: _moved(image, 1, 0, 0.45 * way * share * image.width, 0, 1, 0),
    lambda image, share, way: _moved(image, 1, 0, 0, 0, 1, 0.45 * way * share * image.height),
)
