"""Measure the curve of a run: `-- python jobs/evaluate.py RUN`, submitted as jobs/train.py says."""

import sys

from mergevq_platform.cli import main

main(["evaluate", *sys.argv[1:]])
