"""Reconstructions of image files beside their originals, at several kept counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import mergevq
from mergevq.errors import InputError
from mergevq.files import write_whole
from mergevq.image_size import ImageSize, grid_of, height_width, size_text
from mergevq.merge_schedule import reachable, scaled_keep
from mergevq.serialization import read_config
from mergevq.tokenizer import TokenizerConfig
from mergevq_platform.data import ImageDecodeError, evaluation_view
from mergevq_platform.data.image_folder import read_image
from mergevq_platform.data.images.transparency import WHITE
from mergevq_platform.data.parquet.directory import stated_background
from mergevq_platform.data.reading import Background
from mergevq_platform.data.sources.listing import readable
from mergevq_platform.evaluation.reconstruction_page import (
    LIMIT_BYTES,
    PageFormat,
    most_images,
    reconstruction_page,
)
from mergevq_platform.evaluation.report import (
    note,
)
from mergevq_platform.evaluation.spec import keeps_to_measure, reachable_keeps
from mergevq_platform.evaluation.tokenizer_figures import GRIDS, image_grids
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.lookup import FoundModel, find
from mergevq_platform.tracking.store import Store


def reconstruct(
    name: str,
    images: Sequence[Path],
    *,
    home: Path,
    keeps: Sequence[int] | None,
    out: Path | None = None,
    html: Path | None = None,
    size: ImageSize | None = None,
    tracking_uri: str | None = None,
) -> list[Path]:
    """Originals, reconstructions and cluster maps of image files, side by side; returns the files written.

    They become two figures in the folder `out`, and one page `html` below 5 MB with a slider over the kept counts. Images are
    resized to cover `size`, by default the tokenizer's own, and cropped in the middle; at another size the kept counts that
    were not given are those of the recipe at the same merge ratio. Transparent pixels are put on the background of the run's
    recipe or its set, if that is at hand, else on white. Raises `InputError` naming all files that cannot be read, for files
    that are there already, for a size that does not divide into cells, and for more images than a page holds, before
    anything is written.
    """
    _require_free(out, html)
    found = find(name, home=home, store=Store.at(home, tracking_uri))
    found.require_tokenizer()
    with checkpoints.weights(found.place) as directory:
        own = read_config(directory)
        background: Background = WHITE
        model = own if size is None else _at_size(own, size)
        if (recipe := found.stored_recipe) is not None:
            background = recipe.data.background or stated_background(recipe.data.path) or WHITE
            if keeps is None:
                keeps = _scaled(keeps_to_measure(recipe, None), own, model)
        keeps = reachable_keeps(model, keeps, range(1, model.grid_tokens + 1))
        if html is not None and len(images) > (most := most_images(len(keeps))):
            raise InputError(
                f"{len(images)} images at {len(keeps)} kept counts are more than a page of {LIMIT_BYTES / 1e6:g} MB can hold: give at "
                f"most {most}, or fewer --keep"
            )
        views = _views(images, model.image_size, background)
        tokenizer = mergevq.load(directory)
        sha256 = checkpoints.weights_sha256(directory)
    written: list[Path] = []
    if html is not None:
        page, form = reconstruction_page(
            tokenizer,
            views,
            distinct([readable(path.name) for path in images]),
            keeps,
            title=f"{found.label}: reconstructions over kept tokens",
            facts=_facts(found, model, sha256),
        )
        write_whole(html, page.html())
        if form != PageFormat():
            note(form.sentence(views[0].shape[:2]))
        written.append(html)
    if out is not None:
        originals = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
        written += image_grids(tokenizer, originals, keeps, out).values()
    return written


def _require_free(out: Path | None, html: Path | None) -> None:
    if out is not None and (there := [name for name in GRIDS if (out / name).exists()]):
        raise InputError(
            f"--out {out} holds {' and '.join(there)} already: name another folder, or move them away"
        )
    if html is not None and html.exists():
        raise InputError(f"--html {html} is there already: name another file, or move it away")


def _facts(found: FoundModel, model: TokenizerConfig, sha256: str) -> list[str]:
    weights = "weights as saved" if found.step is None else f"EMA weights of step {found.step:,}"
    height, width = height_width(model.image_size)
    size = f"{height} × {width} px"
    return [
        f"Tokenizer {found.label}, {weights}, sha256 {sha256[:12]}: {size}, {model.grid_tokens} grid tokens, "
        f"{model.quantizer.vocabulary:,} codes.",
        f"Of each image the middle, resized to {size}. Decoded with the true source. PSNR of 8-bit images. "
        f"Made by mergevq {mergevq.__version__}.",
    ]


def distinct(names: Sequence[str]) -> list[str]:
    """Names of which none is another's: a second one of the same name gets a number."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def _at_size(own: TokenizerConfig, size: ImageSize) -> TokenizerConfig:
    """The tokenizer's configuration for images of `size`. Raises `InputError` where they do not divide into its cells."""
    try:
        rows, columns = grid_of(size, own.encoder.reduction)
    except InputError as error:
        raise InputError(f"--size {size_text(size).replace(' ', '')}: {error}") from None
    return replace(own, image_size=size, keep=min(own.keep, rows * columns))


def _scaled(keeps: Sequence[int], own: TokenizerConfig, model: TokenizerConfig) -> tuple[int, ...]:
    """Kept counts of the grid of `own` at the same merge ratio on that of `model`, as far as its layers reach."""
    least = reachable(model.grid_tokens, model.encoder.depth).start
    counts = (max(least, scaled_keep(keep, own.grid_tokens, model.grid_tokens)) for keep in keeps)
    return tuple(dict.fromkeys(counts))


def _views(files: Sequence[Path], size: ImageSize, background: Background) -> list[np.ndarray]:
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
