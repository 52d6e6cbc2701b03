"""The twelve shapes of the procedural set, as signed distances, with the area and the reach of each."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

Array = np.ndarray


def disc(x: Array, y: Array) -> Array:
    """Signed distances (negative inside) at points in units of a shape of radius about 1; so are all below."""
    return np.hypot(x, y) - 1


def ring(x: Array, y: Array) -> Array:
    """A disc with a hole."""
    return np.abs(np.hypot(x, y) - 0.72) - 0.28


def square(x: Array, y: Array) -> Array:
    """A square."""
    return np.maximum(np.abs(x), np.abs(y)) - 1


def triangle(x: Array, y: Array) -> Array:
    """An equilateral triangle."""
    return _polygon(x, y, [(np.sin(a), np.cos(a)) for a in np.arange(3) * 2 * np.pi / 3])


def diamond(x: Array, y: Array) -> Array:
    """A long rhombus: no turned square."""
    return _polygon(x, y, [(0.55, 0), (0, 1.1), (-0.55, 0), (0, -1.1)])


def pentagon(x: Array, y: Array) -> Array:
    """A regular pentagon."""
    return _polygon(x, y, [(np.sin(a), np.cos(a)) for a in np.arange(5) * 2 * np.pi / 5])


def star(x: Array, y: Array) -> Array:
    """A star of five points."""
    angles = np.arange(10) * np.pi / 5
    return _polygon(
        x, y, [(r * np.sin(a), r * np.cos(a)) for a, r in zip(angles, [1, 0.42] * 5, strict=True)]
    )


def cross(x: Array, y: Array) -> Array:
    """A plus sign."""
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 1, y - 0.32), np.maximum(x - 0.32, y - 1))


def pill(x: Array, y: Array) -> Array:
    """A bar with round ends."""
    return np.hypot(x, y - np.clip(y, -0.8, 0.8)) - 0.36


def half_disc(x: Array, y: Array) -> Array:
    """Half of a disc."""
    return np.maximum(np.hypot(x, y + 0.4) - 1, -(y + 0.4))


def heart(x: Array, y: Array) -> Array:
    """A heart: two discs and the triangle below them."""
    x = np.abs(x)
    lobes = np.hypot(x - 0.46, y - 0.3) - 0.54
    point = np.maximum(y - 0.3, (x * 0.76 - (y + 0.98) * 0.65) / np.hypot(0.76, 0.65))
    inner = np.maximum(np.maximum(x - 0.46, y - 0.5), -y - 0.1)
    return np.minimum(np.minimum(lobes, point), inner)


def arrow(x: Array, y: Array) -> Array:
    """An arrow: a shaft and a head."""
    shaft = np.maximum(np.abs(x) - 0.24, np.abs(y + 0.45) - 0.6)
    head = _polygon(x, y, [(0.0, 1.1), (-0.8, 0.05), (0.8, 0.05)])
    return np.minimum(shaft, head)


SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    shape.__name__: shape
    for shape in (disc, ring, square, triangle, diamond, pentagon, star, cross, pill, half_disc, heart, arrow)
}
CLASSES = tuple(name.replace("_", "-") for name in SHAPES)


@cache
def measures() -> tuple[Array, Array]:
    """The area of each shape of unit radius, and the distance of its furthest point from its centre."""
    axis = np.linspace(-1.6, 1.6, 641)
    x, y = np.meshgrid(axis, axis)
    inside = [shape(x, y) < 0 for shape in SHAPES.values()]
    cell = (axis[1] - axis[0]) ** 2
    areas = np.array([mask.sum() * cell for mask in inside])
    return areas, np.array([np.hypot(x, y)[mask].max() for mask in inside])


def _polygon(x: Array, y: Array, corners: list[tuple[float, float]]) -> Array:
    """Exact signed distance to a simple polygon (Inigo Quilez, "2D distance functions")."""
    nearest = np.full(np.shape(x), np.inf)
    inside = np.zeros(np.shape(x), dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = x - ax, y - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        crosses = (ay <= y) != (by <= y)
        inside ^= crosses & (x < ax + (y - ay) * (ex / ey if ey else 0.0))
    return np.where(inside, -1, 1) * np.sqrt(nearest)
