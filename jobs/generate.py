"""Make images: `ray job submit --working-dir . -- python jobs/generate.py RUN --out DIR …` (PYTHONPATH=platform)."""

import sys

from mergevq_platform.cli import main

main(["generate", *sys.argv[1:]])
