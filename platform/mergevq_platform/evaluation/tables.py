"""Tables on a terminal, in a pipe or in a log: every word whole, at any width."""

from __future__ import annotations

import os

from rich.console import Console
from rich.table import Column, Table

FILE_WIDTH = 160
FRAME = 3  # of each column: a border and a space on both sides


def table_console() -> Console:
    """As wide as the terminal; in a file or a pipe, where COLUMNS says nothing else, as wide as a log is read."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    return console


def print_table(table: Table, console: Console | None = None) -> None:
    """Print a table; one that is too wide in parts below each other, each with the first column."""
    console = console or table_console()
    printed = parts(table, console)
    for part in printed:
        console.print(part)
    if table.caption and table not in printed:
        console.print(table.caption, style="table.caption")


def parts(table: Table, console: Console) -> list[Table]:
    """The table, or where the console is too narrow tables of some of its columns each, without the caption.

    The first column is in all of them, the others stay in order. A column that may be wrapped needs the width of its longest word.
    """
    needed = [_needed(column, console) for column in table.columns]
    first, *others = needed or [0]
    groups: list[list[int]] = [[]]
    left = room = console.width - 1 - first
    for index, width in enumerate(others, 1):
        if width > left and groups[-1]:
            groups.append([])
            left = room
        groups[-1].append(index)
        left -= width
    if len(groups) == 1:
        return [table]
    made = [_of_columns(table, [0, *group]) for group in groups]
    made[0].title = table.title
    return made


def _needed(column: Column, console: Console) -> int:
    wide = console.options.update_width(100_000)
    sizes = [console.measure(cell, options=wide) for cell in (column.header, *column.cells)]
    return FRAME + max(size.maximum if column.no_wrap else size.minimum for size in sizes)


def _of_columns(table: Table, indices: list[int]) -> Table:
    chosen = [table.columns[index] for index in indices]
    made = Table(box=table.box, padding=table.padding, pad_edge=table.pad_edge)
    for column in chosen:
        made.add_column(
            column.header, justify=column.justify, no_wrap=column.no_wrap, overflow=column.overflow
        )
    for row in zip(*(column.cells for column in chosen), strict=True):
        made.add_row(*row)
    return made
