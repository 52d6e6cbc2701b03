"""What an evaluation leaves behind: tables, figures, MLflow's records, lines on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergevq.config import flattened
from mergevq.tokenizer import MergeVQ
from mergevq_platform import figures
from mergevq_platform.curves import Curve
from mergevq_platform.data import EvalBatches
from mergevq_platform.evaluation.evaluator import Evaluator
from mergevq_platform.evaluation.measuring import Findings
from mergevq_platform.evaluation.subject import Subject
from mergevq_platform.tables import table_console

PICTURES_SHOWN = 8


def write(curve: Curve, subject: Subject, folder: Path, findings: Findings | None = None) -> dict[str, Path]:
    """Write JSON, CSV, Markdown, the figures of the curve and the picture grids; returns the files by name.

    `findings` adds the code histogram, the worst reconstructions and the nearest neighbours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("curve.json", "table.md", "table.csv")}
    curve.save(files["curve.json"])
    files["table.md"].write_text(
        curve.markdown() + "\n\n" + "\n".join(f"- {line}" for line in curve.verdict()) + "\n"
    )
    files["table.csv"].write_text(curve.csv())
    files |= curve_figures(curve, folder)
    evaluator = Evaluator(subject)
    keeps = [int(keep) for keep in curve.column("keep")]
    if "reconstruction" in curve.suites:
        evaluated = measured(curve, evaluator, evaluator.recipe.data.evaluation_split)
        originals = evaluator.pictures(evaluated, range(min(PICTURES_SHOWN, evaluated.images)))
        files |= picture_grids(evaluator.tokenizer, originals, keeps, folder)
    return files | finding_figures(findings or Findings(), curve, evaluator, folder)


def measured(curve: Curve, evaluator: Evaluator, split: str) -> EvalBatches:
    """The batches that the curve was measured on: without images that could not be decoded."""
    return evaluator.batches(split, tuple(curve.protocol.get("left_out", {}).get(split, ())))


@torch.inference_mode()
def finding_figures(findings: Findings, curve: Curve, evaluator: Evaluator, folder: Path) -> dict[str, Path]:
    """How often codes are used, the worst reconstructions, the nearest neighbours: files in `folder`."""
    drawn = {}
    keeps, data = [int(keep) for keep in curve.column("keep")], evaluator.recipe.data
    evaluated = measured(curve, evaluator, data.evaluation_split)
    if findings.code_counts:
        drawn["codes.png"] = figures.code_usage_figure(findings.code_counts)
    if findings.each_psnr:
        psnr = findings.each_psnr[max(findings.each_psnr)]
        worst = [int(row) for row in np.argsort(psnr, kind="stable")[:PICTURES_SHOWN]]
        originals = evaluator.pictures(evaluated, worst)
        tokenizer = evaluator.tokenizer
        painted = {keep: tokenizer.decode(tokenizer.encode(originals, keep)).cpu() for keep in keeps}
        drawn["worst.png"] = figures.worst_grid(
            originals.cpu(), painted, worst, {keep: findings.each_psnr[keep][worst] for keep in keeps}
        )
    if findings.neighbours is not None:
        queries, rows = evaluator.pictures(evaluated, range(len(findings.neighbours))), findings.neighbours
        learned_from = measured(curve, evaluator, data.train_split)
        found = torch.stack([evaluator.pictures(learned_from, rank).cpu() for rank in rows.T], 1)
        drawn["neighbours.png"] = figures.neighbour_grid(queries.cpu(), found, findings.neighbours_keep)
    files = {name: folder / name for name in drawn}
    for name, figure in drawn.items():
        figures.save_png(figure, files[name])
    return files


def curve_figures(curve: Curve, folder: Path) -> dict[str, Path]:
    """The trade-off (PNG, HTML), and both goals against each other where there is a probe; files in `folder`."""
    drawn = {}
    if "reconstruction" in curve.suites:
        drawn["tradeoff.png"] = figures.tradeoff_figure(curve)
    if "reconstruction" in curve.suites and figures.probed(curve):
        entry = figures.Entry(curve.run, curve.run, curve)
        drawn["pareto.png"] = figures.pareto_figure(
            [entry], f"Reconstruction against representation: {curve.run}"
        )
    files = {name: folder / name for name in drawn}
    for name, figure in drawn.items():
        figures.save_png(figure, files[name])
    if drawn:
        files["tradeoff.html"] = folder / "tradeoff.html"
        files["tradeoff.html"].write_text(figures.tradeoff_html(curve))
    return files


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
    console = table_console()
    console.print(curve.table(console.width))
    for sentence in curve.verdict():
        console.print(f"  {sentence}", highlight=False)
    shown = files.get("tradeoff.png", files["table.md"])
    console.print(
        f"{'picture' if shown.suffix == '.png' else 'table'}: {shown}", highlight=False, soft_wrap=True
    )


def note(text: str) -> None:
    """A line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)
