"""Run a sweep: `ray job submit --working-dir . -- python jobs/sweep.py sweeps/FILE.py [a.b=c …]` (PYTHONPATH=platform)."""

import sys

from mergevq_platform.cli import main

main(["sweep", *sys.argv[1:]])
