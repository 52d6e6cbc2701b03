"""Images with a step in MLflow's page: files of a run below `images/`, named as its page reads them.

MLflow's own `log_image` adds a second set when a request is repeated and needs a server to write to. These are files like
any other of the run: recorded in the journal, delivered in order, replaced when they are sent again.
"""

from __future__ import annotations

import re
import uuid
from pathlib import Path

import numpy as np

from mergevq.errors import InputError

FOLDER = (
    "images"  # among a run's artifacts; a file there with another form of name hides all images of the run
)
IMAGES_TAG = "mlflow.loggedImages"  # of a run that has images: the page looks for them only there
PREVIEW_PIXELS = 256  # longer side of what the page shows before a click
_OURS = uuid.UUID("a3c1ce8e-7c0b-4c53-8a55-2f6b1f0f3f5a")


def save_page_image(folder: Path, key: str, step: int, image: np.ndarray) -> dict[str, Path]:
    """Write an image (H, W, 3) uint8 of `key` at `step`, in full as PNG and small as WebP; the files by `images/NAME`.

    Names depend on key and step alone. Raises `InputError` for a key that the page of some version does not read.
    """
    from PIL import Image

    if not re.fullmatch(r"[a-z_]+", key):
        raise InputError(f"image key '{key}': use small letters and '_'")
    directory = folder / FOLDER
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"{key}+step+{step}+timestamp+0+{uuid.uuid5(_OURS, f'{key} {step}')}"
    names = {"full": f"{stem}.png", "preview": f"{stem}+compressed.webp"}
    full = Image.fromarray(image)
    full.save(directory / names["full"], optimize=True)
    full.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS), Image.Resampling.LANCZOS)
    full.save(directory / names["preview"], quality=85)
    return {f"{FOLDER}/{name}": directory / name for name in names.values()}
