"""A small set of real images, labelled, in the modes that real sets have: what scikit-image and matplotlib ship.

Nine classes are crops of a photograph or a scan each, every class written in another mode and format; the tenth are
toolbar icons, dark on a transparent ground. Training crops come from the left of a photograph, validation crops from its right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import skimage
from PIL import Image

SIDE = 48
PHOTOGRAPHS = Path(skimage.__file__).parent / "data"
ICONS = Path(matplotlib.__file__).parent / "mpl-data" / "images"
TRAIN, VAL = 24, 8


def _deep(crop: Image.Image) -> np.ndarray:
    return np.asarray(crop.convert("L")).astype(np.uint16) * 257


def _grey(crop: Image.Image, path: Path) -> None:
    crop.convert("L").save(path.with_suffix(".png"))


def _deep_png(crop: Image.Image, path: Path) -> None:
    Image.fromarray(_deep(crop)).save(path.with_suffix(".PNG"), "PNG")


def _deep_pgm(crop: Image.Image, path: Path) -> None:
    header = f"P5\n{crop.width} {crop.height}\n65535\n".encode()
    path.with_suffix(".pgm").write_bytes(header + _deep(crop).astype(">u2").tobytes())


def _float_tiff(crop: Image.Image, path: Path) -> None:
    Image.fromarray((_deep(crop) / 65535).astype(np.float32)).save(path.with_suffix(".tif"))


def _grey_alpha(crop: Image.Image, path: Path) -> None:
    crop.convert("LA").save(path.with_suffix(".png"))


def _jpeg(crop: Image.Image, path: Path) -> None:
    crop.convert("RGB").save(path.with_suffix(".jfif"), "JPEG", quality=95)


def _webp(crop: Image.Image, path: Path) -> None:
    crop.convert("RGB").save(path.with_suffix(".webp"), lossless=True)


def _gif(crop: Image.Image, path: Path) -> None:
    crop.convert("RGB").quantize(64).save(path.with_suffix(".gif"))


def _cmyk(crop: Image.Image, path: Path) -> None:
    crop.convert("CMYK").save(path.with_suffix(".jpg"), quality=95)


CLASSES: dict[str, tuple[str, Callable[[Image.Image, Path], None]]] = {
    "brick": ("brick.png", _grey),
    "grass": ("grass.png", _deep_png),
    "gravel": ("gravel.png", _deep_pgm),
    "moon": ("moon.png", _float_tiff),
    "coins": ("coins.png", _grey_alpha),
    "galaxies": ("hubble_deep_field.jpg", _jpeg),
    "tissue": ("ihc.png", _webp),
    "retina": ("retina.jpg", _gif),
    "cat fur": ("chelsea.png", _cmyk),
}
ICON = "toolbar icon"


def write_textures(root: Path) -> None:
    """Write train/ and val/ of ten class folders below `root`: 24 and 8 images of each class, of 48 px."""
    for name, (file, write) in CLASSES.items():
        with Image.open(PHOTOGRAPHS / file) as photograph:
            photograph.load()
            for split, index, crop in _crops(photograph):
                folder = root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                write(crop, folder / f"{index:03d}")
    for split, index, icon in _icons():
        folder = root / split / ICON
        folder.mkdir(parents=True, exist_ok=True)
        icon.save(folder / f"{index:03d}.png")


def _crops(photograph: Image.Image) -> Iterator[tuple[str, int, Image.Image]]:
    random = np.random.default_rng(0)
    middle = photograph.width * 2 // 3
    for split, count, low, high in (("train", TRAIN, 0, middle), ("val", VAL, middle, photograph.width)):
        for index in range(count):
            left = int(random.integers(low, high - SIDE + 1))
            top = int(random.integers(0, photograph.height - SIDE + 1))
            yield split, index, photograph.crop((left, top, left + SIDE, top + SIDE))


def _icons() -> Iterator[tuple[str, int, Image.Image]]:
    files = sorted(ICONS.glob("*_large.png"))
    turns = [
        None,
        Image.Transpose.FLIP_LEFT_RIGHT,
        Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.ROTATE_90,
    ]
    for split, names, count in (("train", files[:-2], TRAIN), ("val", files[-2:], VAL)):
        every = [(file, turn) for turn in turns for file in names][:count]
        for index, (file, turn) in enumerate(every):
            with Image.open(file) as icon:
                icon.load()
                yield split, index, icon if turn is None else icon.transpose(turn)
