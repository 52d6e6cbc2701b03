"""Reconstructions of image files beside their originals, at several kept counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import mergevq
from mergevq.errors import InputError
from mergevq.serialization import read_config
from mergevq_platform.data import ImageDecodeError, evaluation_view
from mergevq_platform.data.image_folder import read_image
from mergevq_platform.data.images.transparency import WHITE
from mergevq_platform.data.parquet.directory import stated_background
from mergevq_platform.data.reading import Background
from mergevq_platform.evaluation.report import (
    note,
)
from mergevq_platform.evaluation.spec import keeps_to_measure, reachable_keeps
from mergevq_platform.evaluation.tokenizer_figures import GRIDS, image_grids
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.lookup import find
from mergevq_platform.tracking.store import Store


def reconstruct(
    name: str,
    images: Sequence[Path],
    *,
    home: Path,
    keeps: Sequence[int] | None,
    out: Path,
    tracking_uri: str | None = None,
) -> list[Path]:
    """Originals, reconstructions and cluster maps of image files, side by side; returns the files written.

    Transparent pixels are put on the background of the run's recipe or its set, if that is at hand, else on white. Raises
    `InputError` naming all files that cannot be read, and for an `out` that holds such files already, before anything is made.
    """
    if there := [name for name in GRIDS if (out / name).exists()]:
        raise InputError(
            f"--out {out} holds {' and '.join(there)} already: name another folder, or move them away"
        )
    found = find(name, home=home, store=Store.at(home, tracking_uri))
    found.require_tokenizer()
    with checkpoints.weights(found.place) as directory:
        background: Background = WHITE
        if (recipe := found.stored_recipe) is not None:
            background = recipe.data.background or stated_background(recipe.data.path) or WHITE
            if keeps is None:
                keeps = keeps_to_measure(recipe, None)
        views = _views(images, read_config(directory).image_size, background)
        tokenizer = mergevq.load(directory)
    model = tokenizer.config
    originals = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return list(
        image_grids(
            tokenizer, originals, reachable_keeps(model, keeps, range(1, model.grid_tokens + 1)), out
        ).values()
    )


def _views(files: Sequence[Path], size: int, background: Background) -> list[np.ndarray]:
    """The evaluation views of image files. Raises `InputError` naming all that cannot be read."""
    views, bad, transparent = [], [], []
    for path in files:
        try:
            image, look = read_image(path, background)
        except ImageDecodeError as error:
            bad.append(f"{path} {error}")
            continue
        views.append(evaluation_view(image, size))
        transparent += [str(path)] if look.transparent else []
    if bad:
        raise InputError("; ".join(bad) + ": give image files")
    if transparent:
        note(f"transparent pixels become {background}: {', '.join(transparent)}")
    return views
