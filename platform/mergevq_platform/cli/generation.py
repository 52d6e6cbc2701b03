"""`mergevq tokenize` and `generate`: from images to codes, and from classes to images."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import yaml

from mergevq.config import config, parse, to_tree
from mergevq.errors import InputError
from mergevq.keep import KeepDistributionConfig
from mergevq_platform.cli.in_use import found, store_in_use
from mergevq_platform.cli.numbers import count, mean_count
from mergevq_platform.cli.paths import user_path
from mergevq_platform.cli.verbs import add_storage, add_verb
from mergevq_platform.storage.settings import read_settings

if TYPE_CHECKING:
    from mergevq_platform.codes import AllocatedCounts
    from mergevq_platform.storage.lookup import FoundModel

OPTIONS = {  # keys of sampling and guidance -> as they are typed
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "scale": "--cfg",
    "schedule": "--cfg-schedule",
    "interval": "--cfg-interval",
}


def add(verbs: Any) -> None:
    """Add the verbs of this module to the command line's."""
    _add_tokenize(verbs)
    _add_generate(verbs)


def _add_tokenize(verbs: Any) -> None:
    tokenize = add_verb(
        verbs,
        "tokenize",
        help="images -> codes of a frozen tokenizer, once, for training generators",
        description="Tokenize an image set with a tokenizer's averaged weights into Parquet shards. Interrupted, the same "
        "command goes on. Training images get --crops views each: the evaluation view, its mirror image, a random crop, "
        "its mirror image, and so on.",
        examples=[
            "mergevq tokenize RUN data/codes/shapes --keep 16 36 64",
            "mergevq tokenize RUN data/codes/shapes25 --budget 25 --keep 9 16 25 36 49 64",
        ],
    )
    tokenize.add_argument(
        "tokenizer",
        help="a run's name, its directory, a checkpoint, an imported tokenizer, or hf://owner/name[@revision]",
    )
    tokenize.add_argument("out", type=user_path, help="directory of the code set")
    tokenize.add_argument(
        "--data",
        help="image set: a directory, a URI or hf://datasets/owner/name (default: the tokenizer's own)",
    )
    tokenize.add_argument(
        "--label-column", metavar="NAME", help="the column of classes, of Parquet ('none': no labels)"
    )
    tokenize.add_argument(
        "--keep",
        nargs="+",
        metavar="K",
        help="kept counts at which every view is stored, or one distribution such as '{kind: gaussian, keep: [144, 256], "
        "peak: 144}', from which every block of images draws one (default: the tokenizer's own counts); with --budget the counts to "
        "choose from",
    )
    tokenize.add_argument(
        "--budget",
        type=mean_count,
        metavar="MEAN",
        help="every image its own kept count, so many on the mean: chosen by --allocator, calibrated on the training images",
    )
    tokenize.add_argument(
        "--allocator",
        metavar="NAME",
        help="with --budget, what chooses: similarity (default), compressed_size, oracle (slow: it tries every count), or learned:RUN",
    )
    tokenize.add_argument("--crops", type=count, default=2, help="views of each training image (default 2)")
    tokenize.add_argument("--splits", nargs="+", metavar="SPLIT", help="default: all of the image set")
    tokenize.add_argument("--seed", type=int, default=0, help="of random crops and drawn counts")
    _add_cluster(tokenize)
    tokenize.set_defaults(function=_tokenize)


def _add_generate(verbs: Any) -> None:
    generate = add_verb(
        verbs,
        "generate",
        help="classes -> images of a trained generator; resumable, the same for any number of workers",
        description="Make images, classes in turn, with a contact sheet and a manifest of how. Run again, it makes what is "
        "missing. `mergevq evaluate RUN` evaluates a generator.",
        examples=[
            "mergevq generate RUN --classes heart star --cfg 2 --out images",
            "mergevq generate RUN --budget 36 --out images",
        ],
    )
    generate.add_argument(
        "run", help="a generator's run: name, directory, checkpoint, URI, or hf://owner/name[@revision]"
    )
    generate.add_argument(
        "--out", type=user_path, required=True, help="directory of images, codes, contact sheet, manifest"
    )
    generate.add_argument("--classes", nargs="+", metavar="C", help="names or numbers (default: all)")
    generate.add_argument("--num", type=int, default=64, help="images in all (default 64)")
    generate.add_argument(
        "--cfg", type=float, nargs="+", metavar="S", help="guidance scale, or one for each sub-token; 1: none"
    )
    generate.add_argument(
        "--cfg-schedule", choices=("constant", "linear", "power_cosine"), help="of the scale over the tokens"
    )
    generate.add_argument(
        "--cfg-interval", type=float, nargs=2, metavar=("FROM", "TO"), help="share of tokens that is guided"
    )
    generate.add_argument("--temperature", type=float, nargs="+", metavar="T", help="0: the most likely code")
    generate.add_argument("--top-k", type=int, nargs="+", metavar="K", help="0: all")
    generate.add_argument("--top-p", type=float, nargs="+", metavar="P", help="1: all")
    generate.add_argument(
        "--keep", type=int, help="kept tokens, one of those trained (default: the recipe's)"
    )
    generate.add_argument(
        "--budget",
        type=mean_count,
        metavar="MEAN",
        help="of a generator of codes of a budget, which draws the kept count of every image from those of its class: another mean "
        "of them (default: that of the codes)",
    )
    generate.add_argument(
        "--steps", type=int, help="random order: decoding steps (default: the recipe's, or one a token)"
    )
    generate.add_argument("--seed", type=int, default=0, help="of every code drawn (default 0)")
    generate.add_argument(
        "--batch",
        type=int,
        help="images made together (default: the recipe's); part of what decides the codes",
    )
    generate.add_argument(
        "--tokenizer",
        metavar="RUN",
        help="decode with this tokenizer: its own, moved, or with Source Recovery fine-tuned (mergevq train recovery_gr_256)",
    )
    add_storage(generate)
    _add_cluster(generate)
    generate.set_defaults(function=_generate)


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=count, default=1, help="Ray workers (default 1); any number gives the same result"
    )
    parser.add_argument("--address", help="Ray cluster (default RAY_ADDRESS, else this machine)")


def _device(options: argparse.Namespace) -> tuple[int, Any]:
    """(Ray workers or 0 for this process, device)."""
    import torch

    from mergevq_platform.distributed import cluster

    if options.workers < 1:
        raise InputError(f"--workers {options.workers}: it must be at least 1")
    if options.workers == 1 and not options.address:
        return 0, "cuda" if torch.cuda.is_available() else "cpu"
    cluster.connect(read_settings().home, address=options.address)
    return options.workers, cluster.choose_device("auto", options.workers)


def _tokenize(options: argparse.Namespace) -> None:
    from mergevq_platform import codes
    from mergevq_platform.data import Reading
    from mergevq_platform.evaluation.spec import reading_of
    from mergevq_platform.storage.hub import pinned
    from mergevq_platform.storage.tokenizer_ref import find_tokenizer

    named = found(options.tokenizer)
    named.require_tokenizer()
    tokenizer, recipe = find_tokenizer(named.place), named.stored_recipe
    if options.allocator is not None and options.budget is None:
        raise InputError(
            f"--allocator {options.allocator} goes with --budget: give the mean kept count, such as --budget 25"
        )
    if recipe is None:
        if not options.data or not options.keep:
            raise InputError(f"{named.name} is a tokenizer without a recipe: give --data and --keep")
        data, keep, train_split = pinned(options.data, "dataset"), _keep(options.keep), "train"
        reading = None  # what the set itself says
    else:
        data, train_split = pinned(options.data or recipe.data.path, "dataset"), recipe.data.train_split
        reading = reading_of(recipe, data)
        keep = (
            _keep(options.keep) if options.keep else recipe.tokenizer.keep.candidates(tokenizer.grid_tokens)
        )
    if options.label_column is not None:
        reading = replace(reading or Reading(), label_column=options.label_column)
    workers, device = _device(options)
    if options.budget is not None:
        keep = _allocated(options, named, tokenizer.location, data, workers, device)
    manifest = codes.tokenize(
        tokenizer,
        options.out,
        data=data,
        keep=keep,
        crops=options.crops,
        splits=options.splits,
        train_split=train_split,
        seed=options.seed,
        workers=workers,
        device=device,
        reading=reading,
    )
    for line in codes.reached_lines(manifest.allocation) if manifest.allocation else ():
        print(line)
    for split, views in manifest.views.items():
        size = sum(shard.bytes for shard in manifest.splits[split])
        print(
            f"{split}: {views} views at {', '.join(map(str, manifest.keeps))} kept tokens, {size / 1e6:.1f} MB"
        )
    for reason in manifest.skipped[:10]:
        print(f"left out: {reason}")
    print(f"codes: {options.out}  tokenizer {manifest.tokenizer.sha256[:12]}")


def _allocated(
    options: argparse.Namespace, named: FoundModel, checkpoint: str, data: str, workers: int, device: Any
) -> AllocatedCounts:
    """The allocator of the options, calibrated for the budget on the training images."""
    from mergevq_platform.allocation.allocator_ref import with_places
    from mergevq_platform.allocation.calibrating import calibrate_allocators
    from mergevq_platform.codes import AllocatedCounts
    from mergevq_platform.evaluation.cache import Cache
    from mergevq_platform.evaluation.options import EvaluationOptions
    from mergevq_platform.storage.lookup import places_of_runs

    name, menu = options.allocator or "similarity", None
    if name == "fixed":
        raise InputError(
            f"--allocator fixed keeps one count for all images: leave --budget out and give --keep {options.budget:g}"
        )
    if named.stored_recipe is None:
        raise InputError(
            f"--budget {options.budget:g} is calibrated on the images of a training, and {named.name} is a tokenizer without a recipe: "
            "give the run, or --keep alone"
        )
    if options.keep:
        menu = _keep(options.keep)
        if not isinstance(menu, tuple):
            raise InputError(
                "--budget chooses among kept counts, not of a distribution: give --keep such as 9 16 25 36"
            )
    settings = EvaluationOptions(
        device=device,
        workers=workers,
        cache=Cache.at(read_settings().home),
        data=data,
        say=lambda text: print(text, flush=True),
    )
    names = with_places([name], places_of_runs(read_settings().home, store_in_use))
    (calibrated,) = calibrate_allocators(
        checkpoint, named.recipe, names, [options.budget], settings, menu=menu
    )
    return AllocatedCounts(calibrated, options.budget)


@config
class _Drawn:
    keep: KeepDistributionConfig


def _keep(words: list[str]) -> Any:
    if all(word.isdecimal() for word in words):
        return tuple(map(int, words))
    try:
        tree = yaml.safe_load(" ".join(words))
    except yaml.YAMLError:
        tree = None
    if not isinstance(tree, dict):
        raise InputError(
            f"--keep {' '.join(words)}: give counts, or one distribution such as '{{kind: uniform, keep: [16, 64]}}'"
        )
    return parse(_Drawn, {"keep": tree}, where="--").keep


def _generate(options: argparse.Namespace) -> None:
    from mergevq.generation import GuidanceConfig, SamplingConfig
    from mergevq_platform.sampling import job as sampling_job
    from mergevq_platform.sampling import pipeline

    named = found(options.run, storage=options.storage)
    named.require_generator()
    tokenizer = found(options.tokenizer).place if options.tokenizer else None
    settings = named.recipe.generator.generation
    sampling = {
        name: _one_or_more(value)
        for name in ("temperature", "top_k", "top_p")
        if (value := getattr(options, name)) is not None
    }
    guidance = {
        name: value
        for name, value in (
            ("scale", _one_or_more(options.cfg)),
            ("schedule", options.cfg_schedule),
            ("interval", options.cfg_interval),
        )
        if value is not None
    }
    workers, device = _device(options)
    spec = pipeline.open_sampling(
        named.checkpoint,
        device=device,
        keep=options.keep,
        budget=options.budget,
        steps=options.steps,
        seed=options.seed,
        sampling=parse(SamplingConfig, {**to_tree(settings.sampling), **sampling}, options=OPTIONS),
        guidance=parse(GuidanceConfig, {**to_tree(settings.guidance), **guidance}, options=OPTIONS),
        tokenizer=tokenizer,
    )

    names = pipeline.class_names(spec.recipe)
    job = sampling_job.SamplingJob(
        spec=spec,
        directory=str(options.out),
        classes=pipeline.class_labels(options.classes, names),
        names=names,
        num=options.num,
        batch=options.batch or settings.batch,
    )
    manifest = sampling_job.sample_images(job, workers=workers)
    if made := manifest.get("last_run"):
        print(
            f"{made['pictures']} images in {made['seconds']:.1f} s ({made['tokens_per_second']:.0f} tokens/s)"
        )
    else:
        print("all images were made already")
    print(f"images: {options.out / 'pictures'}")
    print(f"contact sheet: {options.out / 'contact_sheet.png'}")


def _one_or_more(values: list | None) -> Any:
    if values is None:
        return None
    return values[0] if len(values) == 1 else tuple(values)
