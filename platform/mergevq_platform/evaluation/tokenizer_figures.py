"""The figures of a tokenizer's evaluation: the trade-off, reconstructions and clusters, single findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mergevq.tokenizer import MergeVQ
from mergevq_platform import figures
from mergevq_platform.data import EvalBatches
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.spec import EvaluationSpec
from mergevq_platform.evaluation.tokenizer_results import TokenizerFindings
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.tracking.page_images import save_page_image

GRIDS = ("reconstructions.png", "clusters.png")  # files of `image_grids`


def write_figures(
    curve: Curve, spec: EvaluationSpec, findings: TokenizerFindings, folder: Path
) -> dict[str, Path]:
    """The table as CSV, the figures of the curve, image grids, and the figures of `findings`: files in `folder` by name."""
    files = {"table.csv": folder / "table.csv"}
    files["table.csv"].write_text(curve.csv())
    files |= curve_figures(curve, folder)
    worker = TokenizerWorker(spec)
    keeps = [int(keep) for keep in curve.column("keep")]
    if "reconstruction" in curve.suites:
        evaluated = evaluated_batches(curve, worker, worker.recipe.data.evaluation_split)
        shown = range(min(worker.recipe.evaluation.shown_images, evaluated.images))
        originals = worker.images(evaluated, shown)
        files |= image_grids(worker.tokenizer, originals, keeps, folder, page_images=True)
    return files | finding_figures(findings, curve, worker, folder)


def evaluated_batches(curve: Curve, worker: TokenizerWorker, split: str) -> EvalBatches:
    """The batches that the curve was measured on: without images that could not be decoded."""
    return worker.batches(split, tuple(curve.protocol.get("left_out", {}).get(split, ())))


@torch.inference_mode()
def finding_figures(
    findings: TokenizerFindings, curve: Curve, worker: TokenizerWorker, folder: Path
) -> dict[str, Path]:
    """Code usage, the worst reconstructions, the nearest neighbours: files in `folder`."""
    drawn = {}
    keeps, data = [int(keep) for keep in curve.column("keep")], worker.recipe.data
    evaluated = evaluated_batches(curve, worker, data.evaluation_split)
    if findings.code_counts:
        drawn["codes.png"] = figures.code_usage_figure(findings.code_counts)
    if findings.each_psnr:
        psnr = findings.each_psnr[max(findings.each_psnr)]
        worst = [int(row) for row in np.argsort(psnr, kind="stable")[: worker.recipe.evaluation.shown_images]]
        originals = worker.images(evaluated, worst)
        tokenizer = worker.tokenizer
        decoded = {keep: tokenizer.decode(tokenizer.encode(originals, keep)).cpu() for keep in keeps}
        drawn["worst.png"] = figures.worst_grid(
            originals.cpu(), decoded, worst, {keep: findings.each_psnr[keep][worst] for keep in keeps}
        )
    if findings.neighbours is not None:
        queries, rows = worker.images(evaluated, range(len(findings.neighbours))), findings.neighbours
        learned_from = evaluated_batches(curve, worker, data.train_split)
        found = torch.stack([worker.images(learned_from, rank).cpu() for rank in rows.T], 1)
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
def image_grids(
    tokenizer: MergeVQ,
    originals: Tensor,
    keeps: Sequence[int],
    folder: Path,
    *,
    page_images: bool = False,
) -> dict[str, Path]:
    """Reconstructions and cluster maps of images (B, 3, H, W) in [-1, 1] over kept counts, as PNG files in `folder`.

    With `page_images` also an image of each for every count, for the slider of MLflow's page.
    """
    encoded = {keep: tokenizer.encode(originals, keep) for keep in keeps}
    decoded = {keep: tokenizer.decode(code).cpu() for keep, code in encoded.items()}
    assigned = {keep: code.source.assignment.cpu() for keep, code in encoded.items()}
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in GRIDS}
    figures.save_png(figures.reconstruction_grid(originals.cpu(), decoded), files["reconstructions.png"])
    figures.save_png(figures.cluster_grid(originals.cpu(), assigned), files["clusters.png"])
    if page_images:
        drawn = {
            "reconstructions": figures.reconstruction_pairs(originals.cpu(), decoded),
            "clusters": figures.cluster_pairs(originals.cpu(), assigned),
        }
        for key, by_keep in drawn.items():
            for keep, image in by_keep.items():
                files |= save_page_image(folder, key, keep, image)
    return files
