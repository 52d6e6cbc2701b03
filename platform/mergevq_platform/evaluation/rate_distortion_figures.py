"""Files of a report of allocators: rate and distortion, counts, images with few and many tokens, the table as CSV."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from mergevq_platform import figures
from mergevq_platform.evaluation.tokenizer_passes import TokenizerPasses
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.tracking.page_images import save_page_image

if TYPE_CHECKING:
    from mergevq_platform.evaluation.rate_distortion_report import RateDistortionReport
    from mergevq_platform.figures.few_and_many import ChosenImages

SHOWN = 4  # images with the fewest tokens, and with the most
PAGE_KEY = "few_and_many"  # of the images in MLflow's page


@dataclass
class AllocationFindings:
    """Single images that figures show: of each allocator and wanted mean those with the fewest and the most tokens."""

    rows: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)  # (2 SHOWN,) rows of the split
    counts: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)  # their kept tokens
    psnr: dict[tuple[str, float], np.ndarray] = field(default_factory=dict)  # and dB

    def take(
        self, chosen: dict[tuple[str, float], np.ndarray], psnr: np.ndarray, menu: tuple[int, ...]
    ) -> None:
        """Take them out of counts (B,) and of PSNR (B, M) at every count of the menu; where all are equal there are none."""
        for choice, counts in chosen.items():
            if len(counts) < 2 * SHOWN or len(np.unique(counts)) < 2:
                continue
            order = np.argsort(counts, kind="stable")
            rows = np.concatenate([order[:SHOWN], order[-SHOWN:]])
            self.rows[choice], self.counts[choice] = rows, counts[rows]
            self.psnr[choice] = psnr[rows, np.searchsorted(menu, counts[rows])]


def write_figures(
    report: RateDistortionReport, passes: TokenizerPasses, findings: AllocationFindings, folder: Path
) -> dict[str, Path]:
    """The table as CSV and the figures: files in `folder` by name; images with few and many tokens for MLflow's page too."""
    files = {"table.csv": folder / "table.csv"}
    files["table.csv"].write_text(report.csv())
    drawn = {
        "rate_distortion.png": figures.rate_distortion_figure(report),
        "counts.png": figures.counts_figure(report),
    }
    budgets = sorted({budget for _, budget in findings.rows})
    worker = TokenizerWorker(passes.spec)
    for budget in budgets:
        shown = {
            name: _images(worker, passes, findings, (name, budget))
            for name, at in findings.rows
            if at == budget
        }
        figure = figures.few_and_many_figure(shown, budget)
        files |= save_page_image(folder, PAGE_KEY, round(budget), figures.pixels(figure))
        if budget == budgets[len(budgets) // 2]:
            drawn["few_and_many.png"] = figure
    for name, figure in drawn.items():
        files[name] = folder / name
        figures.save_png(figure, files[name])
    return files


@torch.inference_mode()
def _images(
    worker: TokenizerWorker, passes: TokenizerPasses, findings: AllocationFindings, choice: tuple[str, float]
) -> ChosenImages:
    evaluated = passes.splits.batches["test"]
    batches = worker.batches(evaluated.dataset.split, evaluated.left_out)
    originals, counts = worker.images(batches, findings.rows[choice]), findings.counts[choice]
    decoded = worker.tokenizer.decode(worker.tokenizer.encode(originals, counts.tolist()))
    return figures.ChosenImages(originals.cpu(), decoded.cpu(), counts, findings.psnr[choice])
