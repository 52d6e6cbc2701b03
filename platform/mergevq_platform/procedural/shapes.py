"""Procedural labelled images: the class is a shape; colour, size, angle, place and background tell nothing about it.

Every shape covers the same area at the same size, so counting pixels does not give the class away either. Image i of a
split is a pure function of (seed, split, size, i). Nothing is read or written: NumPy is enough.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mergevq.rng import MASK, Stream, permutation
from mergevq_platform.procedural.shape_distances import CLASSES, SHAPES, measures

Array = np.ndarray
AREA = (0.13, 0.28)  # share of the image that the shape covers
TILT = np.pi / 4  # a shape is turned by at most this, either way
SPECKS = 4
NOISE_CELLS = 6
CONTRAST = 0.3  # of a background's two colours; more would drown the shape
PALETTE = 6  # candidate colours of a shape; the one that stands out most from its background is taken


def render(indices: Array, split: str, size: int, seed: int = 0) -> tuple[Array, Array]:
    """Images uint8 (n, size, size, 3) and labels int64 (n,) of the numbers `indices` of a split."""
    indices = np.asarray(indices)
    random = _Uniforms(indices, split, seed)
    labels = _labels(indices, split, seed)
    axis = (np.arange(size) + 0.5) / size
    x, y = np.broadcast_to(axis, (size, size)), np.broadcast_to(axis[::-1, None], (size, size))
    colours = random(2, 3)
    canvas = _background(random, x[None], y[None], colours)
    canvas = _specks(random, x[None], y[None], canvas, size)
    canvas = _shape(random, x[None], y[None], canvas, labels, colours, size)
    canvas += (random(size, size)[..., None] - 0.5) * 0.06  # grain: no two images share a flat patch
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8), labels


def numbers_of(classes: Sequence[int], count: int, split: str, seed: int = 0) -> Array:
    """The numbers (count,) int64 of a split's first images of these classes, ascending."""
    runs = -(-count // len(classes))
    numbers = np.arange(runs * len(CLASSES))
    return numbers[np.isin(_labels(numbers, split, seed), classes)][:count]


def _labels(indices: Array, split: str, seed: int) -> Array:
    # Every run of twelve images holds each class once, in a random order.
    count, code = len(CLASSES), zlib.crc32(split.encode())
    orders = {
        block: permutation(count, seed, Stream.SPLIT, code, block)
        for block in np.unique(indices // count).tolist()
    }
    return np.array([orders[i // count][i % count] for i in indices.tolist()], dtype=np.int64)


class _Uniforms:
    """Uniform numbers in [0, 1) of each image, in the order of asking: hashes of (seed, split, image, counter)."""

    def __init__(self, indices: Array, split: str, seed: int) -> None:
        self.keys = _mixed(
            indices.astype(np.uint64) + _mixed(np.uint64((seed << 32 | zlib.crc32(split.encode())) & MASK))
        )
        self.asked = 0

    def __call__(self, *shape: int) -> Array:
        count = int(np.prod(shape, dtype=np.int64))
        counters = np.arange(self.asked, self.asked + count, dtype=np.uint64)
        self.asked += count
        mixed = _mixed(self.keys[:, None] ^ _mixed(counters)[None])
        return ((mixed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).reshape(
            len(self.keys), *shape
        )


def _mixed(value: Any) -> Any:
    # The finaliser of splitmix64 (Steele et al. 2014), on whole arrays.
    with np.errstate(over="ignore"):
        value = (value + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def _background(random: _Uniforms, x: Array, y: Array, colours: Array) -> Array:
    """Stripes, checks, soft noise or a gradient between two colours: (n, S, S, 3) float32 in [0, 1]."""
    kind = _each(random() * 4).astype(int)
    angle, period, phase, phase_across = (_each(value) for value in np.moveaxis(random(4), 1, 0))
    angle, period = angle * 2 * np.pi, 0.2 + 0.3 * period
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    wave = np.sin(2 * np.pi * (along / period + phase))
    wave_across = np.sin(2 * np.pi * (across / period + phase_across))
    stripes = 0.5 + 0.5 * np.clip(3 * wave, -1, 1)
    checks = 0.5 + 0.5 * np.clip(6 * wave * wave_across, -1, 1)
    gradient = np.clip(0.5 + (along - 0.5 * (np.cos(angle) + np.sin(angle))), 0, 1)
    noise = _soft_noise(random(NOISE_CELLS, NOISE_CELLS), x[0], y[0])
    weight = np.choose(kind, [stripes, checks, gradient, noise])[..., None].astype(np.float32)
    first = colours[:, 0]
    second = first + CONTRAST * (colours[:, 1] - first)
    return first[:, None, None] * weight + second[:, None, None] * (1 - weight)


def _soft_noise(grid: Array, x: Array, y: Array) -> Array:
    """Random values (n, c, c) interpolated smoothly over the image."""
    cells = grid.shape[1] - 1

    def corners(at: Array) -> tuple[Array, Array]:
        place = at * cells
        low = np.minimum(place.astype(int), cells - 1)
        part = place - low
        return low, part * part * (3 - 2 * part)

    column, right = corners(x)
    row, down = corners(y)
    top = grid[:, row, column] * (1 - right) + grid[:, row, column + 1] * right
    bottom = grid[:, row + 1, column] * (1 - right) + grid[:, row + 1, column + 1] * right
    return top * (1 - down) + bottom * down


def _specks(random: _Uniforms, x: Array, y: Array, canvas: Array, size: int) -> Array:
    """Small dots of any colour behind the shape; each is there half the time."""
    for _ in range(SPECKS):
        numbers = random(7)
        radius = _each(0.02 + 0.03 * numbers[:, 2])
        distance = np.hypot(x - _each(numbers[:, 0]), y - _each(numbers[:, 1])) - radius
        there = _each(numbers[:, 3]) < 0.5
        canvas = _drawn(canvas, np.where(there, distance, 1.0), numbers[:, 4:7], size)
    return canvas


def _shape(
    random: _Uniforms, x: Array, y: Array, canvas: Array, labels: Array, backgrounds: Array, size: int
) -> Array:
    area, angle, left, up, shade, turn = np.moveaxis(random(6), 1, 0)
    candidates = random(PALETTE, 3)
    apart = np.linalg.norm(candidates[:, :, None] - backgrounds[:, None], axis=-1).min(-1)
    colour = np.take_along_axis(candidates, apart.argmax(1)[:, None, None], 1)[:, 0]
    areas, reach = measures()
    radius = np.sqrt((AREA[0] + (AREA[1] - AREA[0]) * area) / areas[labels])
    margin = np.minimum(reach[labels] * radius, 0.5)
    centre_x, centre_y = _each(margin + left * (1 - 2 * margin)), _each(margin + up * (1 - 2 * margin))
    tilt = TILT * (2 * angle - 1)
    cosine, sine = _each(np.cos(tilt)), _each(np.sin(tilt))
    u = ((x - centre_x) * cosine + (y - centre_y) * sine) / _each(radius)
    v = ((y - centre_y) * cosine - (x - centre_x) * sine) / _each(radius)
    distance = np.empty(u.shape, dtype=np.float32)
    for label, shape in enumerate(SHAPES.values()):
        chosen = labels == label
        distance[chosen] = shape(u[chosen], v[chosen])
    light = 1 + _each(0.25 * (shade - 0.5)) * (
        u * _each(np.cos(2 * np.pi * turn)) + v * _each(np.sin(2 * np.pi * turn))
    )
    return _drawn(canvas, distance * _each(radius), colour, size, light)


def _drawn(canvas: Array, distance: Array, colour: Array, size: int, light: Array | float = 1.0) -> Array:
    # A pixel is as much covered as the edge's signed distance from its centre says.
    cover = np.clip(0.5 - distance * size, 0, 1)[..., None].astype(np.float32)
    inside = (
        np.broadcast_to(colour[:, None, None], canvas.shape) * np.asarray(light, dtype=np.float32)[..., None]
    )
    return canvas + cover * (inside - canvas)


def _each(values: Array) -> Array:
    """One value per image, ready to meet (n, S, S)."""
    return np.asarray(values)[:, None, None]
