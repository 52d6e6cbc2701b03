"""The report of a classifier: top-1 in one row, with the protocol of the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.table import Table

from mergevq_platform.evaluation.headline import divided
from mergevq_platform.evaluation.note import run_note
from mergevq_platform.evaluation.report import EvaluationRecorder
from mergevq_platform.evaluation.report_files import StoredReport
from mergevq_platform.tracking.records import TEST_DETAILS_PREFIX, TEST_PREFIX


@dataclass(frozen=True)
class ClassifierReport(StoredReport):
    """One row: `top1` (percent) with its 95% interval, and counts of images that it is without."""

    called: ClassVar[str] = "a classifier's report"
    file_name: ClassVar[str] = "top1.json"
    folder: ClassVar[str] = "classifier"
    shown_files: ClassVar[tuple[str, ...]] = ("table.md",)

    run: str
    rows: list[dict[str, float]]
    protocol: dict[str, Any]

    @property
    def values(self) -> dict[str, float]:
        """The row."""
        return self.rows[0]

    def record_rows(self, recorder: EvaluationRecorder) -> None:
        """`test/top1` and `test_details/<metric>` at the checkpoint's step."""
        top1, details = divided(self.values, "top1".__eq__)
        values = {f"{TEST_PREFIX}{key}": value for key, value in top1.items()}
        values |= {f"{TEST_DETAILS_PREFIX}{key}": value for key, value in details.items()}
        recorder.metrics(self.protocol["step"] or 0, values)

    def note(self, description: str, figures: Mapping[str, str]) -> str:
        """Top-1, then the rest of the verdict and the row; see `run_note`."""
        del figures
        answer, *verdict = self.verdict()
        return run_note(answer, verdict, self.markdown(), description)

    def table(self, width: int = 120) -> Table:
        """The report for a terminal."""
        del width
        table = Table(title=f"{self.run}: top-1 on '{self.protocol['split']}'", caption=self.caption())
        for key in self.values:
            table.add_column(key, justify="right", no_wrap=True)
        table.add_row(*(f"{value:.4g}" for value in self.values.values()))
        return table

    def markdown(self) -> str:
        """The report as a Markdown table of one row."""
        head = "| " + " | ".join(self.values) + " |\n|" + "---:|" * len(self.values)
        row = "| " + " | ".join(f"{value:.4g}" for value in self.values.values()) + " |"
        return f"{head}\n{row}\n\n{self.caption()}"

    def caption(self) -> str:
        """Data and weights of the numbers."""
        p = self.protocol
        return (
            f"{p['images']:,} images of '{p['split']}', data {p['data_fingerprint'][:12]}, EMA weights of step {p['step']}, "
            f"{p['weights_sha256'][:12]}."
        )

    def verdict(self) -> list[str]:
        """Sentences on top-1, on the images left out, and on the choice of a probe's head."""
        found, split = self.values, self.protocol["split"]
        if "top1" not in found:
            return [f"no top-1: no image of '{split}' has a label", *self._undecodable()]
        sentences = ["top-1 {top1:.2f}% (95% interval {top1_low:.2f} to {top1_high:.2f})".format(**found)]
        if found.get("unlabelled"):
            sentences.append(f"{found['unlabelled']:,.0f} images of '{split}' have no label: left out")
        sentences += self._undecodable()
        if "train_top1" in found:
            rate = self.protocol["learning_rates"][int(found["head"])]
            sentences.append(
                f"head at {rate:g}, chosen by its top-1 of {found['train_top1']:.2f}% on training images"
            )
        return sentences

    def _undecodable(self) -> list[str]:
        count = self.values.get("undecodable")
        return [f"{count:,.0f} images cannot be decoded: left out"] if count else []
