"""`mergevq reconstruct`: what a tokenizer makes of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mergevq.errors import InputError
from mergevq.image_size import size_text
from mergevq_platform.cli.numbers import count, size
from mergevq_platform.cli.paths import user_path
from mergevq_platform.cli.verbs import add_verb
from mergevq_platform.storage.settings import read_settings

FIGURES = Path("reconstructions")


def add(verbs: Any) -> None:
    """Add the verb of this module to the command line's."""
    reconstruct = add_verb(
        verbs,
        "reconstruct",
        help="originals, reconstructions and cluster maps side by side; --html: a page with a slider",
        description="Encode and decode image files at several kept counts, and draw them with the cells that were merged: as two "
        "figures, or as one HTML file with a slider over the kept counts, which needs no server and no network.",
        examples=[
            "mergevq reconstruct RUN photo.jpg --keep 9 16 25 --out images",
            "mergevq reconstruct RUN a.jpg b.jpg --html page.html",
            "mergevq reconstruct RUN photo.jpg --size 192x256",
        ],
    )
    reconstruct.add_argument("checkpoint", help="a run, its directory, or a checkpoint directory")
    reconstruct.add_argument("images", nargs="+", type=user_path, metavar="IMAGE", help="image files")
    reconstruct.add_argument(
        "--keep",
        type=count,
        action="extend",
        nargs="+",
        metavar="K",
        help="kept-token counts (default: those that the run was evaluated at, or six)",
    )
    reconstruct.add_argument(
        "--size",
        type=size,
        metavar="S",
        help="bring images to this size, 64 or 48x64 (height x width; default: the tokenizer's own)",
    )
    reconstruct.add_argument(
        "--out",
        type=user_path,
        metavar="DIR",
        help=f"folder of the figures (default {FIGURES}/, or none with --html)",
    )
    reconstruct.add_argument(
        "--html",
        type=user_path,
        metavar="FILE",
        help="one page with a slider instead, all inside one file below 5 MB",
    )
    reconstruct.set_defaults(function=_reconstruct)


def _reconstruct(options: argparse.Namespace) -> None:
    from mergevq_platform.distributed.failures import ran_out_of_memory
    from mergevq_platform.evaluation import reconstruction

    try:
        written = reconstruction.reconstruct(
            options.checkpoint,
            options.images,
            home=read_settings().home,
            keeps=options.keep,
            out=options.out or (None if options.html else FIGURES),
            html=options.html,
            size=options.size,
            tracking_uri=read_settings().tracking_uri,
        )
    except (MemoryError, RuntimeError) as error:
        if options.size is None or not ran_out_of_memory(error):
            raise
        asked = size_text(options.size).replace(" ", "")
        raise InputError(
            f"--size {asked}: the memory here does not hold images of that size: give a smaller one"
        ) from None
    for path in written:
        print(path)
