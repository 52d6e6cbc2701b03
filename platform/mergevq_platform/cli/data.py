"""`mergevq data`: make, pack and inspect image sets."""

from __future__ import annotations

import argparse
from typing import Any

from mergevq_platform.cli.numbers import count, size
from mergevq_platform.cli.paths import user_path, user_place
from mergevq_platform.cli.typed import as_typed, naming_options
from mergevq_platform.cli.verbs import add_group, add_verb
from mergevq_platform.storage.settings import read_settings

LAYOUTS = (
    "folders",
    "flat",
    "archives",
    "webdataset",
    "parquet",
)  # `data.sources.choices.Layout`, without what it imports


def add(verbs: Any) -> None:
    """Add the verbs of this module to the command line's."""
    data = add_group(
        verbs,
        "data",
        help="make, pack and inspect image sets",
        description="Make small image sets, pack large ones into Parquet shards, and look into any.",
        examples=["mergevq data info DIR"],
    )
    _add_made(data)
    _add_packed(data)


def _add_made(data: Any) -> None:
    """Image sets that the verbs make."""
    shapes = add_verb(
        data,
        "shapes",
        help="procedural labelled images as Parquet shards",
        description="Draw images of 12 classes that only their shape tells apart: a data set that needs no download.",
        examples=[
            "mergevq data shapes data/shapes --images 6000 --size 32",
            "mergevq data shapes data/three --classes ring triangle cross",
        ],
    )
    shapes.add_argument("directory", type=user_path, help="the new set's folder")
    shapes.add_argument("--images", type=count, default=6000, help="training images (default 6000)")
    shapes.add_argument(
        "--validation-images", type=count, default=1000, help="validation images (default 1000)"
    )
    shapes.add_argument("--size", type=count, default=32, help="side in pixels (default 32)")
    shapes.add_argument("--seed", type=int, default=0, help="of everything drawn (default 0)")
    shapes.add_argument(
        "--classes", nargs="+", metavar="SHAPE", help="only these, numbered in this order (default: all 12)"
    )
    shapes.set_defaults(function=_data_shapes)
    digits = add_verb(
        data,
        "digits",
        help="scikit-learn's handwritten digits as Parquet shards",
        description="Write the 1,797 handwritten digits that scikit-learn ships: real images that need no download.",
        examples=["mergevq data digits data/digits"],
    )
    digits.add_argument("directory", type=user_path, help="the new set's folder")
    digits.add_argument("--size", type=count, default=32, help="side in pixels (default 32)")
    digits.set_defaults(function=_data_digits)


def _add_packed(data: Any) -> None:
    """Image sets that users bring."""
    pack = add_verb(
        data,
        "pack",
        help="class folders, archives, WebDataset or Parquet -> shards, resumable",
        description="Pack an image set into Parquet shards on all cores. Interrupted, the same command goes on.",
        examples=["mergevq data pack /data/imagenet data/imagenet --size 256"],
    )
    pack.add_argument(
        "source",
        type=user_place,
        help="the images: a folder of folders, archives or Parquet, or hf://datasets/owner/name[@revision][/folder]",
    )
    pack.add_argument("directory", type=user_path, help="the new set's folder")
    pack.add_argument(
        "--size",
        type=size,
        metavar="S",
        help="shrink images until they cover this: 64, a shorter side of 64 pixels, or 48x64, height x width",
    )
    pack.add_argument(
        "--validation-fraction",
        type=float,
        default=0.0,
        metavar="F",
        help="hold out this share of the training images where the source has no validation split",
    )
    _add_choices(pack)
    pack.add_argument("--seed", type=int, default=0, help="of the order and of what is held out")
    pack.add_argument("--serial", action="store_true", help="in this process, without Ray")
    pack.set_defaults(function=_data_pack)
    info = add_verb(
        data,
        "info",
        help="what a set holds, or what packing it would understand; --sheet",
        description="Say what a packed set holds, or how packing would read a folder: splits, classes, what is left out. Of a code set: "
        "kept counts, tokenizer, allocator, use of the vocabulary.",
        examples=[
            "mergevq data info data/imagenet --sheet sheet.png",
            "mergevq data info /data/photos --splits none",
            "mergevq data info hf://datasets/owner/name",
            "mergevq data info data/codes/shapes --sheet usage.png",
        ],
    )
    info.add_argument(
        "directory",
        help="a packed set, a code set, a folder to pack, or hf://datasets/owner/name[@revision][/folder]",
    )
    info.add_argument("--sheet", type=user_path, help="write a contact sheet PNG here; of codes their usage")
    _add_choices(info)
    info.add_argument("--verify", action="store_true", help="compare every shard with its checksum")
    info.set_defaults(function=_data_info)


def _add_choices(verb: argparse.ArgumentParser) -> None:
    """Options of everything that reads images: what to take where files leave a choice."""
    verb.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="what to read where several are there: image files in folders, files without classes (flat), archives, …",
    )
    verb.add_argument(
        "--splits",
        nargs="+",
        metavar="NAME",
        help="the folders that are splits (others are left out), or 'none': every folder may be a class",
    )
    verb.add_argument("--class-depth", type=count, metavar="N", help="classes are the folders N levels below")
    verb.add_argument(
        "--labels",
        type=user_path,
        metavar="CSV",
        help="file name (or path, or stem) and class of each image, where folders do not say",
    )
    verb.add_argument(
        "--label-column",
        metavar="NAME",
        help="the column of classes, of Parquet ('none': no labels), a CSV or .json members",
    )
    verb.add_argument("--image-column", metavar="NAME", help="the column of encoded images, of Parquet")
    verb.add_argument(
        "--background",
        metavar="COLOUR",
        help="what transparent pixels are put on: white (default), black, grey, or '#rrggbb'",
    )


def _data_shapes(options: argparse.Namespace) -> None:
    from mergevq_platform import data
    from mergevq_platform.procedural.shape_distances import CLASSES

    data.write_shapes(
        options.directory,
        images=options.images,
        val_images=options.validation_images,
        size=options.size,
        seed=options.seed,
        classes=options.classes or CLASSES,
    )
    print(data.describe(options.directory))


def _data_digits(options: argparse.Namespace) -> None:
    from mergevq_platform import data

    data.write_digits(options.directory, size=options.size)
    print(data.describe(options.directory))


def _data_pack(options: argparse.Namespace) -> None:
    from mergevq_platform import data
    from mergevq_platform.distributed import cluster

    if not options.serial:
        cluster.connect(read_settings().home)
    with naming_options():
        data.pack(
            options.source,
            options.directory,
            size=options.size,
            parallel=not options.serial,
            labels=options.labels,
            background=options.background,
            layout=options.layout,
            folder_splits=options.splits,
            class_depth=options.class_depth,
            image_column=options.image_column,
            label_column=options.label_column,
            say=lambda text: print(as_typed(text)),
            validation_fraction=options.validation_fraction,
            seed=options.seed,
        )
    print(as_typed(data.describe(options.directory)))


def _data_info(options: argparse.Namespace) -> None:
    from mergevq.config import parse
    from mergevq_platform import codes, data
    from mergevq_platform.storage.hub import pinned

    place = pinned(options.directory, "dataset")
    if codes.is_code_set(place):
        print(codes.describe_codes(place, sheet=options.sheet, verify=options.verify))
        return
    reading = parse(
        data.Reading,
        {name: getattr(options, name) for name in ("image_column", "label_column", "background")},
    )
    choices = data.Choices(
        layout=options.layout,
        splits=tuple(options.splits) if options.splits is not None else None,
        class_depth=options.class_depth,
        labels=options.labels,
        reading=reading,
    )
    with naming_options():
        text = data.describe(options.directory, sheet=options.sheet, verify=options.verify, choices=choices)
    print(as_typed(text))
