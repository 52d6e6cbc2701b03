"""Measures what we claim about speed and memory: medians of interleaved runs, and ratios within one run.

    python jobs/benchmark.py                 every measurement, about ten minutes on two cores
    python jobs/benchmark.py encoder lfq     only these
    python jobs/benchmark.py --json FILE     also as JSON
    python jobs/benchmark.py sweep_scale     a sweep of 2,000 recorded trials: only when it is named, half an hour
    python jobs/benchmark.py gpu --limit-seconds 180    what a GPU gained, in one sitting
    python jobs/benchmark.py cpu_step --against DIR     the stage-1 step beside that of another checkout

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
from benchmarks import cpu_step, generation, gpu, metrics, recipe_step, sweep_scale, tokenizer
from benchmarks import platform as feeding_and_ray

from mergevq_platform.recipe.precision import bfloat16_unit

MEASUREMENTS: dict[str, Callable[..., Iterable[str]]] = {
    name: measurement
    for module in (gpu, tokenizer, cpu_step, recipe_step, metrics, generation, feeding_and_ray, sweep_scale)
    for name, measurement in module.MEASUREMENTS.items()
}


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
    options = parser.parse_args()
    unknown = set(options.names) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"no measurement {', '.join(sorted(unknown))}: choose of {', '.join(MEASUREMENTS)}")
    machine = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} CPU cores ({platform.machine()}, bfloat16 by {bfloat16_unit() or 'nothing'})"
    )
    print(f"machine: {machine}; torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    report: dict[str, Any] = {"machine": machine, "torch": torch.__version__}
    settings: dict[str, dict[str, Any]] = {
        "gpu": {"limit_seconds": options.limit_seconds, "tiny": options.tiny},
        "cpu_step": {"against": options.against},
    }
    for name in options.names or [name for name in MEASUREMENTS if name not in sweep_scale.MEASUREMENTS]:
        report[name] = []
        for line in MEASUREMENTS[name](**settings.get(name, {})):
            report[name].append(line)
            print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(main())
