"""`mergevq data`: make, pack and inspect picture sets."""

from __future__ import annotations

import argparse
from typing import Any

from mergevq_platform.cli.paths import user_path
from mergevq_platform.places import places


def add(verbs: Any) -> None:
    """Add the verbs of this room to the command line's."""
    data = verbs.add_parser("data", help="make, pack and inspect picture sets").add_subparsers(
        required=True, metavar="WHAT"
    )
    shapes = data.add_parser("shapes", help="procedural labelled pictures as Parquet shards")
    shapes.add_argument("directory", type=user_path)
    shapes.add_argument("--images", type=int, default=6000, help="training pictures (default 6000)")
    shapes.add_argument(
        "--validation-images", type=int, default=1000, help="validation pictures (default 1000)"
    )
    shapes.add_argument("--size", type=int, default=32, help="side in pixels (default 32)")
    shapes.add_argument("--seed", type=int, default=0)
    shapes.set_defaults(function=_data_shapes)
    digits = data.add_parser("digits", help="scikit-learn's handwritten digits as Parquet shards")
    digits.add_argument("directory", type=user_path)
    digits.add_argument("--size", type=int, default=32, help="side in pixels (default 32)")
    digits.set_defaults(function=_data_digits)
    pack = data.add_parser("pack", help="ImageFolder, ImageNet tree, tar or Parquet -> shards, resumable")
    pack.add_argument("source", type=user_path)
    pack.add_argument("directory", type=user_path)
    pack.add_argument("--size", type=int, help="resize the shorter side to this many pixels")
    pack.add_argument(
        "--labels",
        type=user_path,
        metavar="CSV",
        help="file name (or stem) and class of each picture, where folders do not say",
    )
    pack.add_argument(
        "--validation-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="hold out this share of the training pictures where the source has no validation split",
    )
    pack.add_argument("--seed", type=int, default=0, help="of the order and of what is held out")
    pack.add_argument("--serial", action="store_true", help="in this process, without Ray")
    pack.set_defaults(function=_data_pack)
    info = data.add_parser("info", help="rows, classes, shards; --sheet writes a contact sheet")
    info.add_argument("directory")
    info.add_argument("--sheet", type=user_path, help="write a contact sheet PNG here")
    info.add_argument("--verify", action="store_true", help="compare every shard with its checksum")
    info.set_defaults(function=_data_info)


def _data_shapes(options: argparse.Namespace) -> None:
    from mergevq_platform import data

    data.write_shapes(
        options.directory,
        images=options.images,
        val_images=options.validation_images,
        size=options.size,
        seed=options.seed,
    )
    print(data.describe(options.directory))


def _data_digits(options: argparse.Namespace) -> None:
    from mergevq_platform import data

    data.write_digits(options.directory, size=options.size)
    print(data.describe(options.directory))


def _data_pack(options: argparse.Namespace) -> None:
    from mergevq_platform import cluster, data

    if not options.serial:
        cluster.connect(places().home)
    data.pack(
        options.source,
        options.directory,
        size=options.size,
        parallel=not options.serial,
        labels=options.labels,
        validation_fraction=options.validation_fraction,
        seed=options.seed,
    )
    print(data.describe(options.directory))


def _data_info(options: argparse.Namespace) -> None:
    from mergevq_platform import data

    print(data.describe(options.directory, sheet=options.sheet, verify=options.verify))
