"""Measures what we claim about speed and memory: medians of interleaved runs, and ratios within one run.

    python jobs/benchmark.py                 every measurement, about ten minutes on two cores
    python jobs/benchmark.py encoder lfq     only these
    python jobs/benchmark.py --json FILE     also as JSON

Absolute times belong to the machine named at the top; the ratios are what carries over.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from benchmarks import generation, metrics, recipe_step, tokenizer
from benchmarks import platform as feeding_and_ray

MEASUREMENTS = {
    name: measurement
    for module in (tokenizer, recipe_step, metrics, generation, feeding_and_ray)
    for name, measurement in module.MEASUREMENTS.items()
}


def main() -> None:
    """Print the chosen measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    unknown = set(options.names) - set(MEASUREMENTS)
    if unknown:
        parser.error(f"no measurement {', '.join(sorted(unknown))}: choose of {', '.join(MEASUREMENTS)}")
    machine = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} CPU cores ({platform.machine()})"
    )
    print(f"machine: {machine}; torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)
    report: dict[str, Any] = {"machine": machine, "torch": torch.__version__}
    for name in options.names or MEASUREMENTS:
        report[name] = []
        for line in MEASUREMENTS[name]():
            report[name].append(line)
            print(line, flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    sys.exit(main())
