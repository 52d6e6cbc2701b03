"""Tokenize images: `ray job submit --working-dir . -- python jobs/tokenize_images.py TOKENIZER OUT …` (PYTHONPATH=platform)."""

# Not called tokenize.py: beside it, that would shadow the standard library's module.

import sys

from mergevq_platform.cli import main

main(["tokenize", *sys.argv[1:]])
