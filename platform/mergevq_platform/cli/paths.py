"""Paths on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path


def user_path(text: str) -> Path:
    """A path as the shell would have read it: after `--out=` it leaves `~` alone, and a folder of that name would be made."""
    if not text:
        raise argparse.ArgumentTypeError("'' is no path: name one")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"'{text}': no user of that name here; write the path out") from None


def user_place(text: str) -> str:
    """A path as `user_path` reads it, or a URI as it is."""
    return text if "://" in text else str(user_path(text))
