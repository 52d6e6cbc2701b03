"""Tables in a log: every word whole, whatever the width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from mergevq_platform.evaluation.tables import FILE_WIDTH, parts, print_table, table_console

TITLES = ["kept", *(f"metric_of_a_long_name_{index}" for index in range(12))]


def wide_table() -> Table:
    table = Table(title="a curve", caption="what the numbers are")
    for title in TITLES:
        table.add_column(title, justify="right", no_wrap=True)
    for keep in (9, 16):
        table.add_row(str(keep), *(f"{keep}.{index:02d}" for index in range(12)))
    return table


@pytest.mark.parametrize("width", [40, 80, FILE_WIDTH, 400])
def test_no_word_of_a_table_is_cut_at_any_width(width: int) -> None:
    written = io.StringIO()
    console = Console(file=written, width=width)
    print_table(wide_table(), console)
    text = written.getvalue()
    assert "…" not in text
    for words in (TITLES, [f"{keep}.{index:02d}" for keep in (9, 16) for index in range(12)]):
        assert all(text.count(f" {word} ") == 1 for word in words if word != "kept")
    assert text.count(" kept ") == len(parts(wide_table(), console)) == text.count(" 16 ")
    assert text.count("a curve") == text.count("what the numbers are") == 1
    assert max(map(len, text.splitlines())) <= width


def test_a_table_that_fits_stays_as_it_is() -> None:
    table = wide_table()
    assert parts(table, Console(width=400)) == [table]


def test_a_log_is_wide_unless_columns_says_how_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert table_console().width == FILE_WIDTH
    monkeypatch.setenv("COLUMNS", "70")
    assert table_console().width == 70
