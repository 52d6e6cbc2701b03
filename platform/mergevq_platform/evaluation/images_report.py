"""The report of image sets: metrics of images against a reference, with the protocol of the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from rich.table import Table

from mergevq.image_size import size_text
from mergevq_platform.evaluation.report import EvaluationRecorder
from mergevq_platform.storage.json_text import json_text


@dataclass(frozen=True)
class ImageSetsReport:
    """Metrics of images against a reference, with the protocol of the numbers."""

    file_name: ClassVar[str] = "images.json"
    folder: ClassVar[str] = "images"
    shown_files: ClassVar[tuple[str, ...]] = ()

    images: str
    values: dict[str, float]
    protocol: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json_text(asdict(self)))

    def record_rows(self, recorder: EvaluationRecorder) -> None:
        """`images/<metric>` at step 0."""
        recorder.metrics(0, {f"images/{key}": value for key, value in self.values.items()})

    def note(self, description: str, figures: Mapping[str, str]) -> None:
        """None: image sets are no run."""
        return None

    def verdict(self) -> list[str]:
        """None: what is compared with what is the caller's to say."""
        return []

    def table(self, width: int = 120) -> Table:
        """For the terminal."""
        del width
        table = Table(title=self.images, caption=self.caption())
        table.add_column("metric")
        table.add_column("value", justify="right")
        for key, value in self.values.items():
            table.add_row(key, f"{value:.4g}")
        return table

    def markdown(self) -> str:
        """As a Markdown table of one row."""
        keys = list(self.values)
        rows = ["| images | " + " | ".join(keys) + " |", "|---|" + "---:|" * len(keys)]
        rows.append(f"| {self.images} | " + " | ".join(f"{self.values[key]:.4g}" for key in keys) + " |")
        return "\n".join([*rows, "", self.caption()])

    def caption(self) -> str:
        """Counts, reference and extractor in one sentence."""
        p = self.protocol
        count = p["reference_images"]
        against = f"{count:,} images" if count else "an unknown number of images"
        against = f" against {against} of {p['reference']}" if p["reference"] else ""
        biased = (
            " No more images than features: the distance is strongly biased upwards." if p["biased"] else ""
        )
        return (
            f"{p['images']:,} images of {size_text(p['size'])} px{against}; "
            f"{p['extractor']['description']}, {p['extractor']['resize']}.{biased}"
            + "".join(f" No {what}: {reason}." for what, reason in p.get("lacking", {}).items())
        )
