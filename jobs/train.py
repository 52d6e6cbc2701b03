"""Train a recipe: `ray job submit --working-dir . -- python jobs/train.py RECIPE [a.b=c …]` (PYTHONPATH=platform)."""

import sys

from mergevq_platform.cli import main

main(["train", *sys.argv[1:]])
