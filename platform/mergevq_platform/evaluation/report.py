"""The report of an evaluation of any kind: rows of numbers with their protocol, files, records in MLflow."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from rich.table import Table

from mergevq.config import flattened
from mergevq_platform.evaluation.note import linked_figure, narrow_copy
from mergevq_platform.evaluation.tables import print_table, table_console
from mergevq_platform.tracking.notes import NOTE_TAG
from mergevq_platform.tracking.page_images import FOLDER, IMAGES_TAG
from mergevq_platform.tracking.protocols import PROTOCOL_TAG, protocol_id

AnyReport = TypeVar("AnyReport", bound="EvaluationReport")


class EvaluationRecorder(Protocol):
    """The recorder of a run: in this process, or the run's actor."""

    def metrics(self, step: int, values: Mapping[str, float]) -> object:
        """Values at a step."""

    def curve(
        self,
        rows: Mapping[int, Mapping[str, float]],
        details: Mapping[int, Mapping[str, float]] | None = None,
    ) -> object:
        """Rows by kept tokens: what a paper prints, and the details."""

    def tags(self, values: Mapping[str, str]) -> object:
        """Tags of the run."""

    def artifact(self, file: Path, directory: str = "") -> object:
        """A file."""

    def flush(self) -> object:
        """All of it is on its way when this returns."""


class EvaluationReport(Protocol):
    """Rows of numbers, and their protocol."""

    file_name: ClassVar[str]  # of its JSON
    folder: ClassVar[str]  # of its files among a run's artifacts
    shown_files: ClassVar[tuple[str, ...]]  # those that a person looks at first

    @property
    def protocol(self) -> dict[str, Any]:
        """The protocol of the numbers: data, counts, extractor, weights."""

    def save(self, path: Path) -> None:
        """Write as JSON."""

    def table(self, width: int = 120) -> Table:
        """For a terminal of so many columns."""

    def markdown(self) -> str:
        """As a Markdown table, with the caption."""

    def verdict(self) -> list[str]:
        """Plain sentences."""

    def record_rows(self, recorder: EvaluationRecorder) -> None:
        """Give the rows to a recorder, as metrics."""

    def note(self, description: str, figures: Mapping[str, str]) -> str | None:
        """The note of the run in MLflow, whose recipe is described so; None leaves it as it is.

        `figures` are the PNG files that were written, each as Markdown of its narrow copy, by name.
        """


class KindEvaluator(Protocol[AnyReport]):
    """The evaluator of a kind of model: workers do its jobs, their results become rows."""

    def report(self, run: str) -> AnyReport:
        """The report of what tables call `run`."""

    def write_figures(self, report: AnyReport, folder: Path) -> dict[str, Path]:
        """Figures and further tables, as files in `folder`, by name."""


def write(report: AnyReport, evaluator: KindEvaluator[AnyReport], folder: Path) -> dict[str, Path]:
    """Write JSON, Markdown and the figures; returns the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in (report.file_name, "table.md")}
    report.save(files[report.file_name])
    verdict = "\n".join(f"- {sentence}" for sentence in report.verdict())
    files["table.md"].write_text(f"{report.markdown()}\n\n{verdict}\n")
    return files | evaluator.write_figures(report, folder)


def record(
    report: EvaluationReport, files: Mapping[str, Path], recorder: EvaluationRecorder, description: str
) -> None:
    """Record a report: rows as metrics, files as artifacts, a note, and the few tags of `protocol_tags`."""
    record_beside(report, files, recorder)
    pngs = {name: file for name, file in files.items() if name.endswith(".png") and not _is_page_image(name)}
    figures = {name: linked_figure(report.folder, file) for name, file in pngs.items()}
    note = report.note(description, figures)
    for name, file in pngs.items():
        if note is not None and figures[name] in note:
            recorder.artifact(narrow_copy(file), report.folder)
    recorder.tags(
        protocol_tags(report.protocol)
        | ({IMAGES_TAG: "True"} if any(map(_is_page_image, files)) else {})
        | ({} if note is None else {NOTE_TAG: note})
    )


def record_beside(report: EvaluationReport, files: Mapping[str, Path], recorder: EvaluationRecorder) -> None:
    """Record rows and files of a report in a run whose note and tags are those of another."""
    report.record_rows(recorder)
    for name, file in files.items():
        recorder.artifact(file, FOLDER if _is_page_image(name) else report.folder)


def _is_page_image(name: str) -> bool:
    return name.startswith(f"{FOLDER}/")


def protocol_tags(protocol: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a protocol: the key of its Fréchet distance, its caveat, and what is equal where numbers may be compared.

    All of it is in the report's JSON, among the run's artifacts.
    """
    found = {
        "frechet_key": protocol.get("frechet_key") or protocol.get("keys", {}).get("frechet"),
        "caveat": protocol.get("caveat"),
    }
    named = {f"protocol.{key}": str(value) for key, value in found.items() if value}
    return named | {PROTOCOL_TAG: protocol_id(flattened(dict(protocol)))}


def show(report: EvaluationReport, files: Mapping[str, Path]) -> None:
    """Print the table, the verdict, and where the figures are."""
    show_numbers(report)
    console = table_console()
    for name in [name for name in report.shown_files if name in files] or ["table.md"]:
        what = "figure" if name.endswith(".png") else "table"
        console.print(f"{what}: {files[name]}", highlight=False, soft_wrap=True)


def show_numbers(report: EvaluationReport) -> None:
    """Print the table and the verdict."""
    console = table_console()
    print_table(report.table(console.width), console)
    for sentence in report.verdict():
        console.print(f"  {sentence}", highlight=False)


def note(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)
