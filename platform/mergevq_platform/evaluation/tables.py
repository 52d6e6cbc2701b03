"""The terminal that tables are printed on."""

from __future__ import annotations

import os

from rich.console import Console

FILE_WIDTH = 160


def table_console() -> Console:
    """As wide as the terminal, and in a file or a pipe (unless COLUMNS says how wide) wide enough to cut no word."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    return console
