"""`mergevq evaluate`: what a model is worth, in numbers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergevq.errors import InputError
from mergevq_platform.cli.in_use import found
from mergevq_platform.cli.numbers import count, mean_count, size
from mergevq_platform.cli.paths import user_path, user_place
from mergevq_platform.cli.verbs import add_storage, add_verb
from mergevq_platform.storage.settings import read_settings

if TYPE_CHECKING:
    from mergevq.metrics import FeaturesConfig
    from mergevq_platform.evaluation.options import Suite
    from mergevq_platform.evaluation.report import EvaluationReport


def add(verbs: Any) -> None:
    """Add the verbs of this module to the command line's."""
    evaluate = add_verb(
        verbs,
        "evaluate",
        help="measure the curve of a run, a checkpoint or an imported tokenizer; of a generator, over guidance scales; of a probe, top-1",
        description="Measure a trained model, or any image set, and print the table with its verdict. Results are kept by weights and "
        "data: a second evaluation measures nothing, a killed one goes on.",
        examples=[
            "mergevq evaluate RUN",
            "mergevq evaluate RUN --keep 9 16 25 --suite reconstruction",
            "mergevq evaluate RUN --suite generability --suite distribution",
            "mergevq evaluate RUN --suite published --inception FILE --markdown row.md",
            "mergevq evaluate RUN --keep 16 36 64 --suite ar_probe",
            "mergevq evaluate RUN --budget 16 25 36",
            "mergevq evaluate --images DIR --reference DIR_OR_NPZ",
        ],
    )
    evaluate.add_argument(
        "run",
        nargs="?",
        help="a run's name or id (also of a run that only the tracking store knows), a directory or URI of one, a "
        "checkpoint, a registered model (models:/NAME@alias), a model of the Hub (hf://owner/name[@revision]), or an imported "
        "tokenizer's directory",
    )
    _add_suites(evaluate)
    evaluate.add_argument(
        "--keep",
        type=count,
        action="extend",
        nargs="+",
        metavar="K",
        help="kept-token counts (default: the recipe's); with --budget the menu to choose from (default: those of the training)",
    )
    evaluate.add_argument(
        "--cfg",
        type=float,
        nargs="+",
        metavar="S",
        help="generators: guidance scales (1, no guidance, is always measured)",
    )
    evaluate.add_argument(
        "--num", type=count, help="generators: images of each scale (default: the recipe's)"
    )
    evaluate.add_argument(
        "--tokenizer",
        metavar="RUN",
        help="generators: decode with this tokenizer: its own, moved, or with Source Recovery fine-tuned",
    )
    evaluate.add_argument("--data", type=user_place, help="another image set (default: the recipe's)")
    evaluate.add_argument(
        "--recipe", help="for an imported tokenizer: the recipe whose data and protocol to take"
    )
    _add_allocators(evaluate)
    _add_measures(evaluate)
    _add_image_sets(evaluate)
    _add_procedure(evaluate)
    evaluate.set_defaults(function=_evaluate)


def _add_allocators(evaluate: argparse.ArgumentParser) -> None:
    """Options of a comparison of allocators."""
    evaluate.add_argument(
        "--budget",
        type=mean_count,
        action="extend",
        nargs="+",
        metavar="MEAN",
        help="tokenizers: instead of the curve, compare allocators that choose a count for each image, at these means of kept tokens; "
        "generators of a budget: another mean of the counts that they draw",
    )
    evaluate.add_argument(
        "--allocator",
        action="extend",
        nargs="+",
        metavar="NAME",
        help="with --budget: fixed, compressed_size, similarity, oracle, or learned:RUN (default: all that need no run)",
    )


def _add_suites(evaluate: argparse.ArgumentParser) -> None:
    """The option of what is measured."""
    evaluate.add_argument(
        "--suite",
        action="append",
        choices=[
            *("reconstruction", "representation", "generation", "distribution", "generability", "ar_probe"),
            *("published", "all"),
        ],
        help="what to measure, may be given again (default all): of a tokenizer reconstruction and representation, of a generator "
        "or --images generation. Beside them, not in all: distribution, KID, density and coverage of the features at hand; "
        "generability, of a tokenizer, pFID and the like, which decodes 20 times more; ar_probe, of a tokenizer, trains a small "
        "transformer on the codes of every kept count; published, all, and the row that a paper prints, with what is missing of it",
    )


def _add_measures(evaluate: argparse.ArgumentParser) -> None:
    """Options of the features and probes that it measures with."""
    evaluate.add_argument(
        "--extractor",
        metavar="YAML",
        help="features of the Fréchet distance, as in a recipe: random, or {kind: timm, name: …, weights: FILE}; "
        "files without a folder are looked for in MERGEVQ_WEIGHTS too",
    )
    evaluate.add_argument(
        "--probe",
        action="extend",
        nargs="+",
        default=[],
        choices=["exact", "mergevq", "mae", "dinov2"],
        help="published probes beside the exact one: the MergeVQ paper's (A.4), MAE's, DINOv2's many heads",
    )
    evaluate.add_argument(
        "--inception",
        metavar="FILE",
        help="short for --extractor '{kind: inception, weights: FILE}': pt_inception-2015-12-05-6726825d.pth makes it FID",
    )


def _add_image_sets(evaluate: argparse.ArgumentParser) -> None:
    """Options of an evaluation of image sets without a model."""
    evaluate.add_argument(
        "--images",
        type=user_place,
        metavar="PLACE",
        help="instead of a run: evaluate these images (a folder of files, a Parquet set, or an npz with arr_0)",
    )
    evaluate.add_argument(
        "--reference",
        type=user_place,
        metavar="PLACE",
        help="with --images: the images, or the npz of statistics (pytorch-fid's, the ADM suite's), to compare with",
    )
    evaluate.add_argument(
        "--size",
        type=size,
        metavar="S",
        help="with --images: bring all images to this size first, 64 or 48x64 (height x width)",
    )
    evaluate.add_argument("--split", help="with --images: of Parquet sets")
    evaluate.add_argument(
        "--save-statistics",
        type=user_path,
        metavar="NPZ",
        help="with --images: write their statistics, for others",
    )


def _add_procedure(evaluate: argparse.ArgumentParser) -> None:
    """Options of how it is done: repetitions, workers, files, storage, tracking, cache."""
    evaluate.add_argument(
        "--seeds",
        type=count,
        default=1,
        help="repeat what is random over so many seeds and give mean and deviation: the initialisation of the untrained "
        "baseline, order and start of published probes, the subsets of an extrapolated distance; nothing else is random",
    )
    evaluate.add_argument(
        "--workers", type=count, default=1, help="Ray workers (default 1); any number gives the same result"
    )
    evaluate.add_argument("--json", type=user_path, metavar="FILE", help="write the curve as JSON here")
    evaluate.add_argument(
        "--markdown",
        type=user_path,
        metavar="FILE",
        help="write the table, with its protocol, as Markdown here",
    )
    evaluate.add_argument(
        "--out", type=user_path, help="write figures and tables here (default: the run's curve-* folder)"
    )
    add_storage(evaluate)
    evaluate.add_argument("--address", help="Ray cluster (default RAY_ADDRESS, else this machine)")
    evaluate.add_argument("--no-tracking", action="store_true", help="do not record in MLflow")
    evaluate.add_argument(
        "--no-cache", action="store_true", help="measure all of it again (mergevq cache says what is kept)"
    )


def _evaluate(options: argparse.Namespace) -> None:
    from mergevq_platform.evaluation import api

    extractor = _extractor(options)
    if bool(options.run) == bool(options.images):
        both = ", not both" if options.run else ""
        raise InputError(f"give a run (mergevq runs list names them), or --images PLACE{both}")
    if options.images:
        _evaluate_images(options, extractor)
        return
    if options.reference or options.size or options.split or options.save_statistics:
        raise InputError(
            "--reference, --size, --split and --save-statistics go with --images PLACE: leave them out"
        )
    if options.allocator and not options.budget:
        raise InputError(
            "--allocator goes with --budget: give the mean kept counts, such as --budget 16 25 36"
        )
    match found(options.run, storage=options.storage).task_kind:
        case "generator":
            _check_generator(options)
        case "finetune" | "probe" as kind:
            _check_classifier(options, kind)
        case _:
            _check_tokenizer(options)
    report = api.evaluate(
        options.run,
        home=read_settings().home,
        keeps=tuple(options.keep) if options.keep else None,
        data=options.data,
        recipe=options.recipe,
        suites=suites_of(options.suite),
        extractor=extractor,
        probes=tuple(name for name in options.probe if name != "exact"),
        seeds=options.seeds,
        scales=options.cfg,
        images=options.num,
        tokenizer=found(options.tokenizer).place if options.tokenizer else None,
        budgets=options.budget,
        allocators=options.allocator,
        workers=options.workers,
        out=options.out,
        storage=options.storage,
        address=options.address,
        tracking_uri=read_settings().tracking_uri,
        track=not options.no_tracking,
        cache=not options.no_cache,
    )
    more = _published(report) if "published" in (options.suite or ()) else ""
    _write(report, options, more)


def suites_of(chosen: Sequence[str] | None) -> tuple[Suite, ...]:
    """The suites of an evaluation for what was chosen."""
    from mergevq_platform.evaluation.options import SUITES

    found: list[Suite] = []
    for name in chosen or ("all",):
        match name:
            case "all" | "generation" | "published":
                found += SUITES
            case "reconstruction" | "representation" | "distribution" | "generability" | "ar_probe" as suite:
                found.append(suite)
    return tuple(dict.fromkeys(found))


def _published(report: EvaluationReport) -> str:
    """Print the row that a paper has of it; returns it as Markdown."""
    from mergevq_platform.evaluation.published import published
    from mergevq_platform.evaluation.tables import print_table, table_console

    row = published(report)
    if row is None:
        return ""
    console = table_console()
    print_table(row.table(), console)
    for sentence in row.missing:
        console.print(f"  {sentence}", highlight=False)
    return row.markdown()


def _check_tokenizer(options: argparse.Namespace) -> None:
    if "generation" in (options.suite or ()):
        raise InputError(f"{options.run} is a tokenizer, which generates no images: choose another --suite")
    if options.cfg or options.num or options.tokenizer:
        raise InputError(
            f"--cfg and --num are for generators, as is --tokenizer; {options.run} is a tokenizer: leave them out"
        )
    if options.budget and (set(options.suite or ()) - {"all"} or options.probe or options.seeds > 1):
        raise InputError(
            "with --budget the exact probe and all of its measures are taken: leave --suite, --probe and --seeds out"
        )


def _check_classifier(options: argparse.Namespace, kind: str) -> None:
    given = {
        "--keep": options.keep,
        "--budget": options.budget,
        "--cfg": options.cfg,
        "--num": options.num,
        "--tokenizer": options.tokenizer,
        "--recipe": options.recipe,
        "--probe": options.probe,
        "--suite": set(options.suite or ()) - {"all"},
        "--extractor": options.extractor or options.inception,
        "--seeds": options.seeds > 1,
    }
    if names := [name for name, value in given.items() if value]:
        raise InputError(
            f"{options.run} is a {kind} run, of which top-1 alone is measured: leave {', '.join(names)} out"
        )


def _check_generator(options: argparse.Namespace) -> None:
    from mergevq.config import parse
    from mergevq.generation import GuidanceConfig

    if options.allocator:
        raise InputError(
            f"{options.run} is a generator run, whose codes say the allocator: leave --allocator out, or give a tokenizer's run"
        )
    if options.recipe or options.probe or len(options.keep or ()) + len(options.budget or ()) > 1:
        raise InputError(
            "a generator is evaluated by its own recipe at one kept count or one mean of them: leave --recipe and --probe out, give "
            "one --keep or one --budget"
        )
    if of_tokenizers := [
        name
        for name in options.suite or ()
        if name in ("reconstruction", "representation", "generability", "ar_probe")
    ]:
        raise InputError(
            f"{options.run} is a generator, of which {of_tokenizers[0]} is not measured: evaluate its tokenizer, or choose another --suite"
        )
    for scale in options.cfg or ():
        parse(GuidanceConfig, {"scale": scale}, options={"scale": "--cfg"})


def _extractor(options: argparse.Namespace) -> FeaturesConfig | None:
    from mergevq_platform.evaluation.extractor_choice import inception_extractor, parse_extractor

    if options.inception:
        return inception_extractor(options.inception, read_settings().weights)
    return parse_extractor(options.extractor, read_settings().weights) if options.extractor else None


def _evaluate_images(options: argparse.Namespace, extractor: FeaturesConfig | None) -> None:
    from mergevq_platform.evaluation import api
    from mergevq_platform.evaluation.tables import print_table

    if unknown := set(options.suite or ()) - {"all", "generation", "distribution"}:
        raise InputError(
            f"--images has generation and distribution, not {min(unknown)}: choose another --suite, or give a run"
        )
    report = api.evaluate_images(
        options.images,
        options.reference,
        home=read_settings().home,
        extractor=extractor,
        size=options.size,
        split=options.split,
        seeds=options.seeds,
        workers=options.workers,
        statistics=options.save_statistics,
        distribution="distribution" in (options.suite or ()),
        address=options.address,
        cache=not options.no_cache,
    )
    print_table(report.table())
    _write(report, options)


def _write(report: EvaluationReport, options: argparse.Namespace, more: str = "") -> None:
    if options.json:
        report.save(options.json)
    if options.markdown:
        options.markdown.write_text("\n\n".join(filter(None, (report.markdown(), more))) + "\n")
