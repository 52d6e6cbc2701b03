"""The golden tests say at their end which comparison they made."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for all golden tests of the session."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    made = {value for report in reports for name, value in report.user_properties if name == "golden"}
    for line in sorted(made):
        terminalreporter.write_line(f"golden files: {line}")
