"""The note of an evaluated run in MLflow: the answer in its first line, then verdict, a narrow table and a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mergevq_platform.tracking.notes import artifact_address

TABLE_COLUMNS = 7  # MLflow's page gives cells hardly any padding
FIGURE_PIXELS = (
    520  # a wider one pushes the right half of a run's page out of a window of 1280; its page takes no width
)


def run_note(
    answer: str,
    verdict: Iterable[str],
    table: str,
    *more: str,
    figure: str | None = None,
) -> str:
    """Markdown: `answer` stands alone in the line that MLflow's page shows folded; `figure` is one of `linked_figure`."""
    parts = [f"**{answer}**", "\n".join(f"- {sentence}" for sentence in verdict), table]
    if figure is not None:
        parts.append(figure)
    return "\n\n".join(part for part in (*parts, *more) if part)


def markdown_table(columns: Sequence[tuple[str, str, str]], rows: Iterable[Mapping[str, float]]) -> list[str]:
    """The lines of a Markdown table of rows; columns are (key, title, format), and a cell without a number is empty."""
    lines = ["| " + " | ".join(title for _, title, _ in columns) + " |", "|" + "---:|" * len(columns)]
    lines += [
        "| " + " | ".join(f"{row[key]:{form}}" if key in row else "" for key, _, form in columns) + " |"
        for row in rows
    ]
    return lines


def linked_figure(folder: str, file: Path) -> str:
    """Markdown of the narrow copy of a figure among the artifacts `folder`, which opens the figure itself."""
    narrow, full = (artifact_address(f"{folder}/{name}") for name in (_narrow(file).name, file.name))
    return f"[![{file.stem}]({narrow})]({full})"


def narrow_copy(file: Path) -> Path:
    """Write the narrow copy of a figure beside it."""
    from PIL import Image

    with Image.open(file) as image:
        image.thumbnail((FIGURE_PIXELS, 4 * FIGURE_PIXELS), Image.Resampling.LANCZOS)
        image.save(_narrow(file), optimize=True)
    return _narrow(file)


def _narrow(file: Path) -> Path:
    return file.with_name(f"{file.stem}_narrow.png")
