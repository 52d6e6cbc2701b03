"""The views of a picture that a training step reads, keyed by (seed, epoch, sample) alone.

Three views after the official release (`data/base.py`): the reconstruction view, resized and cropped at random, never
flipped; the teacher's, likewise at its own size; the student's, a random resized crop (scale 0.08 to 1), flipped half
the time. All resampling is bicubic with antialiasing.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from mergevq.config import config
from mergevq_platform.data.keyed import Stream, uniforms
from mergevq_platform.data.pictures import resize_shorter

Side = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
CROP_TRIES = 10  # as torchvision's RandomResizedCrop


@config
class ViewsConfig:
    """Sizes in pixels and the random crops of each view. `student_size` and `teacher_size`: none, no such view."""

    image_size: Side
    student_size: Side | None = None
    teacher_size: Side | None = None
    image_flip: Fraction = 0.0
    student_scale: tuple[Positive, Positive] = (0.08, 1.0)  # share of the picture's area that a crop covers
    student_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)  # width over height of a crop
    student_flip: Fraction = 0.5

    def __post_init__(self) -> None:
        for name, (low, high) in (
            ("student_scale", self.student_scale),
            ("student_ratio", self.student_ratio),
        ):
            if low > high:
                raise ValueError(f"{name} is [{low}, {high}]: give the lower bound first")
        if self.student_scale[1] > 1:
            raise ValueError(
                f"student_scale is {list(self.student_scale)}: a crop cannot cover more than 1 of the picture"
            )


def make_views(
    picture: Image.Image, config: ViewsConfig, *, seed: int, epoch: int, sample: int
) -> dict[str, np.ndarray]:
    """The views of an RGB picture, each uint8 (S, S, 3): `image`, and `student`, `teacher` where sizes are given."""
    image = uniforms(3, seed, Stream.IMAGE_VIEW, epoch, sample)
    views = {"image": _flipped(_random_crop(picture, config.image_size, image), image[2] < config.image_flip)}
    if config.student_size is not None:
        student = uniforms(2 * CROP_TRIES + 3, seed, Stream.STUDENT_VIEW, epoch, sample)
        box = _resized_crop(picture.size, config.student_scale, config.student_ratio, student)
        views["student"] = _flipped(
            _crop(picture, box, config.student_size), student[-1] < config.student_flip
        )
    if config.teacher_size is not None:
        teacher = uniforms(3, seed, Stream.TEACHER_VIEW, epoch, sample)
        views["teacher"] = np.asarray(_random_crop(picture, config.teacher_size, teacher))
    return views


def evaluation_view(picture: Image.Image, size: int) -> np.ndarray:
    """The picture resized to a shorter side of `size` (bicubic) and cropped in the middle: uint8 (size, size, 3)."""
    resized = resize_shorter(picture, size)
    left, top = (resized.width - size) // 2, (resized.height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _random_crop(picture: Image.Image, size: int, random: np.ndarray) -> Image.Image:
    # Resize, then crop; only the cropped part is resampled.
    width, height = picture.size
    scale = min(width, height) / size
    free_x, free_y = round(width / scale) - size, round(height / scale) - size
    left, top = int(random[0] * (free_x + 1)), int(random[1] * (free_y + 1))
    x_scale, y_scale = width / (size + free_x), height / (size + free_y)
    return _crop(
        picture, (left * x_scale, top * y_scale, (left + size) * x_scale, (top + size) * y_scale), size
    )


def _resized_crop(
    size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], random: np.ndarray
) -> tuple[float, float, float, float]:
    width, height = size
    for attempt in range(CROP_TRIES):
        area = width * height * (scale[0] + random[2 * attempt] * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + random[2 * attempt + 1] * math.log(ratio[1] / ratio[0]))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(random[-3] * (width - crop_width + 1))
            top = int(random[-2] * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    # Nothing fitted: the largest crop in the middle whose shape is allowed.
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width, crop_height = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _crop(picture: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    if box == (0, 0, size, size) == (0, 0, *picture.size):
        return picture
    width, height = picture.size
    box = (box[0], box[1], min(box[2], width), min(box[3], height))  # rounding may stick out by 1e-13
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _flipped(picture: Image.Image, flip: bool) -> np.ndarray:
    array = np.asarray(picture)
    return array[:, ::-1] if flip else array
