"""What an evaluation leaves behind: tables, figures, MLflow's records, lines on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from mergevq.config import flattened
from mergevq.tokenizer import MergeVQ
from mergevq_platform import figures
from mergevq_platform.curves import Curve
from mergevq_platform.data import to_unit_range
from mergevq_platform.evaluation.evaluator import Evaluator
from mergevq_platform.evaluation.subject import Subject

PICTURES_SHOWN = 8


def write(curve: Curve, subject: Subject, folder: Path) -> dict[str, Path]:
    """Write JSON, CSV, Markdown, the trade-off figure (PNG, HTML) and the picture grids; returns the files by name."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        name: folder / name
        for name in ("curve.json", "table.md", "table.csv", "tradeoff.png", "tradeoff.html")
    }
    curve.save(files["curve.json"])
    files["table.md"].write_text(
        curve.markdown() + "\n\n" + "\n".join(f"- {line}" for line in curve.verdict()) + "\n"
    )
    files["table.csv"].write_text(curve.csv())
    figures.save_png(figures.tradeoff_figure(curve), files["tradeoff.png"])
    files["tradeoff.html"].write_text(figures.tradeoff_html(curve))
    evaluator = Evaluator(subject)
    batch = evaluator.batches(evaluator.recipe.data.evaluation_split).batch(0)
    originals = to_unit_range(batch, evaluator.device)["image"][:PICTURES_SHOWN]
    return files | picture_grids(
        evaluator.tokenizer, originals, [int(keep) for keep in curve.column("keep")], folder
    )


@torch.inference_mode()
def picture_grids(
    tokenizer: MergeVQ, originals: Tensor, keeps: Sequence[int], folder: Path
) -> dict[str, Path]:
    """Reconstructions and cluster maps of pictures (B, 3, H, W) in [-1, 1] over kept counts, as PNG files in `folder`."""
    encoded = {keep: tokenizer.encode(originals, keep) for keep in keeps}
    painted = {keep: tokenizer.decode(code).cpu() for keep, code in encoded.items()}
    assigned = {keep: code.source.assignment.cpu() for keep, code in encoded.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("reconstructions.png", "clusters.png")}
    figures.save_png(figures.reconstruction_grid(originals.cpu(), painted), files["reconstructions.png"])
    figures.save_png(figures.cluster_grid(originals.cpu(), assigned), files["clusters.png"])
    return files


def record(curve: Curve, files: dict[str, Path], recorder: Any) -> None:
    """Record a curve and its files: `curve/<metric>` at step = kept tokens, artifacts under curve/."""
    rows = {
        int(row["keep"]): {key: value for key, value in row.items() if key != "keep"} for row in curve.rows
    }
    recorder.curve(rows)
    for file in files.values():
        recorder.artifact(file, "curve")
    protocol = {f"protocol.{key}": str(value) for key, value in flattened(curve.protocol).items()}
    recorder.tags(protocol)


def show(curve: Curve, files: dict[str, Path]) -> None:
    """Print the table, the verdict and where the picture is."""
    console = Console()
    console.print(curve.table(console.width))
    for sentence in curve.verdict():
        console.print(f"  {sentence}", highlight=False)
    console.print(f"picture: {files['tradeoff.png']}", highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)
