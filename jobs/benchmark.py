"""Measures what we claim about speed and memory: medians of interleaved runs, and ratios within one run.

    python jobs/benchmark.py                 every measurement, about ten minutes on two cores
    python jobs/benchmark.py encoder lfq     only these
    python jobs/benchmark.py --json FILE     also as JSON
    python jobs/benchmark.py sweep_scale     a sweep of 2,000 recorded trials: only when it is named, half an hour
    python jobs/benchmark.py gpu --limit-seconds 180    what a GPU gained, in one sitting
    python jobs/benchmark.py cpu_step --against DIR     the stage-1 step beside that of another checkout
    python jobs/benchmark.py llamagen --llamagen DIR    generation beside LlamaGen's own code: only when it is named
    python jobs/benchmark.py official --official DIR    the stage-1 step beside the official code's: only when it is named

Absolute times belong to the machine named at the top; the ratios are what carries over.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from benchmarks import (
    cpu_step,
    generation,
    gpu,
    metrics,
    peers,
    published_size,
    recipe_step,
    sweep_scale,
    tokenizer,
)
from benchmarks import platform as feeding_and_ray

from mergevq.errors import InputError
from mergevq_platform.recipe.precision import bfloat16_unit

MODULES = (
    gpu,
    tokenizer,
    cpu_step,
    recipe_step,
    published_size,
    metrics,
    generation,
    feeding_and_ray,
    sweep_scale,
    peers,
)
MEASUREMENTS: dict[str, Callable[..., Iterable[str]]] = {
    name: measurement for module in MODULES for name, measurement in module.MEASUREMENTS.items()
}
ONLY_NAMED = {*sweep_scale.MEASUREMENTS, *peers.MEASUREMENTS}


def main() -> None:
    """Print the chosen measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--limit-seconds",
        type=float,
        default=600.0,
        help="the time of `gpu`, which leaves out what does not fit",
    )
    parser.add_argument("--tiny", action="store_true", help="`gpu` at a size that a CPU tries it at")
    parser.add_argument("--against", type=Path, metavar="DIR", help="another checkout, for `cpu_step`")
    for peer in peers.PEERS.values():
        parser.add_argument(
            f"--{peer.name}",
            type=Path,
            metavar="DIR",
            help=f"a checkout of {peer.repository}, for `{peer.name}`",
        )
    options = parser.parse_args()
    unknown = set(options.names) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"no measurement {', '.join(sorted(unknown))}: choose of {', '.join(MEASUREMENTS)}")
    try:
        measure(options)
    except InputError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")


def measure(options: argparse.Namespace) -> None:
    """Print the measurements that `options` names, and write them where it says. Raises `InputError` for a wrong checkout."""
    settings: dict[str, dict[str, Any]] = {
        "gpu": {"limit_seconds": options.limit_seconds, "tiny": options.tiny},
        "cpu_step": {"against": options.against},
    }
    for name, peer in peers.PEERS.items():
        if name in options.names:
            settings[name] = {"checkout": peer.checkout(getattr(options, name))}
    machine = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} CPU cores ({platform.machine()}, bfloat16 by {bfloat16_unit() or 'nothing'})"
    )
    print(f"machine: {machine}; torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    report: dict[str, Any] = {"machine": machine, "torch": torch.__version__}
    for name in options.names or [name for name in MEASUREMENTS if name not in ONLY_NAMED]:
        report[name] = []
        for line in MEASUREMENTS[name](**settings.get(name, {})):
            report[name].append(line)
            print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(main())
