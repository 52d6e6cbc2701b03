"""Measure the curve of a run: `ray job submit --working-dir . -- python jobs/evaluate.py RUN` (PYTHONPATH=platform)."""

import sys

from mergevq_platform.cli import main

main(["evaluate", *sys.argv[1:]])
