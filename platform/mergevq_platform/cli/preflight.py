"""`mergevq doctor` and `plan`: a cluster and a recipe checked, time and memory predicted, before a run."""

from __future__ import annotations

import argparse
from typing import Any

from mergevq.errors import InputError
from mergevq_platform.cli.numbers import count
from mergevq_platform.cli.paths import user_path
from mergevq_platform.cli.verbs import add_verb
from mergevq_platform.storage.settings import read_settings

IMAGENET_IMAGES = 1_281_167


def add(verbs: Any) -> None:
    """Add the verbs of this module to the command line's."""
    _add_doctor(verbs)
    _add_plan(verbs)


def _add_doctor(verbs: Any) -> None:
    doctor = add_verb(
        verbs,
        "doctor",
        help="check every node before a run; each line ok, warn or fail with what to do",
        description="Check devices, the network between nodes, clocks, storage, tracking, and with RECIPE its data, weights and memory: "
        "on every node of the cluster of RAY_ADDRESS, else on this machine without Ray. Exit status 1 if a line fails.",
        examples=["mergevq doctor demo"],
    )
    doctor.add_argument("recipe", nargs="?", help="a recipe file or name")
    doctor.add_argument("overrides", nargs="*", default=[], metavar="a.b=c", help="recipe keys to change")
    doctor.add_argument("--address", help="Ray cluster (default RAY_ADDRESS, else this machine)")
    doctor.add_argument(
        "--storage",
        help="where checkpoints go: path, s3://…, gs://… (default MERGEVQ_STORAGE, else runs/ray)",
    )
    doctor.set_defaults(function=_doctor)


def _add_plan(verbs: Any) -> None:
    plan = add_verb(
        verbs,
        "plan",
        help="memory, time and traffic of a recipe on a cluster, on paper",
        description="Measure a step of RECIPE on this machine's device (or read a measurement), and work out what it takes on --nodes "
        "of --gpus devices over the stated links. The recipe's data is not needed, the weights that it names are.",
        examples=["mergevq plan demo --nodes 4 --gpus 8"],
    )
    plan.add_argument("recipe", help="a recipe file or name")
    plan.add_argument("overrides", nargs="*", default=[], metavar="a.b=c", help="recipe keys to change")
    plan.add_argument("--nodes", type=count, default=1, help="nodes of the cluster (default 1)")
    plan.add_argument("--gpus", type=count, default=1, help="devices (or CPU workers) of a node (default 1)")
    plan.add_argument("--link-gbps", type=float, default=100.0, help="between nodes, of a node (default 100)")
    plan.add_argument(
        "--within-gbps", type=float, default=None, help="between devices of a node (GPU: 2400, CPU: 20)"
    )
    plan.add_argument(
        "--overlap", type=float, help="share of the backward pass that hides all-reduce (GPU: 0.8, CPU: 0)"
    )
    source = plan.add_mutually_exclusive_group()
    source.add_argument("--measured", type=user_path, metavar="JSON", help="a measurement that --save wrote")
    source.add_argument(
        "--device-tflops",
        type=float,
        metavar="N",
        help="a device that does N TFLOP/s of such work (achieved, not peak); time by counted FLOPs",
    )
    plan.add_argument("--save", type=user_path, metavar="JSON", help="keep the measurement")
    plan.add_argument(
        "--images", type=count, help="of an epoch (default: the recipe's data, else ImageNet's)"
    )
    plan.add_argument("--pictures", dest="images", type=count, help=argparse.SUPPRESS)  # its name of before
    plan.add_argument("--memory-gib", type=float, help="memory of a device, to say whether it fits")
    plan.set_defaults(function=_plan)


def _doctor(options: argparse.Namespace) -> int:
    from mergevq_platform import recipe
    from mergevq_platform.operations import doctor

    given = [text for text in [options.recipe, *options.overrides] if text]
    names = [text for text in given if "=" not in text]
    if len(names) > 1 or (given and not names):
        raise InputError("give one recipe, then a.b=c")
    chosen = recipe.locate(recipe.load(names[0], [t for t in given if "=" in t])) if names else None
    settings = read_settings(storage=options.storage)
    findings = doctor.examine(chosen, settings=settings, address=options.address, say=print)
    return doctor.summary(findings, say=print)


def _plan(options: argparse.Namespace) -> None:
    import json

    from mergevq.config import to_tree
    from mergevq_platform import recipe
    from mergevq_platform.evaluation.tables import print_table
    from mergevq_platform.operations import planning
    from mergevq_platform.storage.lookup import places_of_runs
    from mergevq_platform.tracking.store import Store

    chosen = recipe.locate(recipe.load(options.recipe, options.overrides))
    if options.measured:
        measured = planning.load_measurement(options.measured)
        if measured.recipe != chosen.name:
            print(f"note: measured with recipe '{measured.recipe}', applied to '{chosen.name}'")
    else:
        home, uri = read_settings().home, read_settings().tracking_uri
        find_run = places_of_runs(home, lambda: Store.at(home, uri))
        measured = planning.measure(chosen, find_run=find_run)
    if options.save:
        options.save.write_text(json.dumps(to_tree(measured), indent=1))
    if options.device_tflops:
        measured = planning.on_device(measured, options.device_tflops)
    gpu = measured.device == "cuda"
    links = planning.Links(
        within_gbps=options.within_gbps or (2400.0 if gpu else 20.0),
        between_gbps=options.link_gbps,
        overlap=options.overlap if options.overlap is not None else (0.8 if gpu else 0.0),
    )
    images, whose = _images(chosen, options.images)
    asked = planning.predict(
        chosen, measured, nodes=options.nodes, gpus=options.gpus, links=links, images=images
    )
    rows = planning.scaling(
        chosen, measured, nodes=options.nodes, gpus=options.gpus, links=links, images=images
    )
    print(f"measured on {measured.machine}: {planning.describe(measured, chosen.precision)}")
    print(
        f"links: {links.within_gbps:g} Gbit/s within a node, {links.between_gbps:g} between nodes; "
        f"{links.overlap:.0%} of the backward pass hides all-reduce; an epoch: {images:,} images ({whose})"
    )
    print_table(planning.table(rows, (options.nodes, options.gpus)))
    for line in planning.conclusions(chosen, measured, asked, rows, memory_gib=options.memory_gib):
        print(line)


def _images(recipe: Any, given: int | None) -> tuple[int, str]:
    from mergevq_platform.data import open_dataset
    from mergevq_platform.data.hub import is_at_hand

    if given:
        return given, "as given"
    try:
        if not is_at_hand(recipe.data.path):
            raise InputError(f"{recipe.data.path} is not in this machine's cache")
        return open_dataset(
            recipe.data.path, recipe.data.train_split, recipe.data.reading
        ).rows, recipe.data.path
    except (InputError, OSError):
        return IMAGENET_IMAGES, f"ImageNet's: {recipe.data.path} is not here; --images says otherwise"
