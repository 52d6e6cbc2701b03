"""Run a sweep: `-- python jobs/sweep.py sweeps/FILE.py [a.b=c …]`, submitted as jobs/train.py says."""

import sys

from mergevq_platform.cli import main

main(["sweep", *sys.argv[1:]])
