"""Paths on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def user_path(text: str) -> Path:
    """A path as the shell would have read it: after `--out=` it leaves `~` alone, and a folder of that name would be made."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"'{text}': nobody here is called so; write the path out") from None
