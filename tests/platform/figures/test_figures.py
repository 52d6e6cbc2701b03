"""The figures of a curve: what they say, that they draw the numbers they were given, and that images stay exact."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from mergevq.errors import InputError
from mergevq_platform import figures
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.figures.grids import palette

FRECHET = "rfd_random_v1"
TRUE_NAME = "features of a fixed random network (random_v1, not ImageNet FID)"
CAVEAT = "The teacher saw these labels: the probe measures distillation."


def curve(
    keeps: tuple[int, ...] = (9, 25, 64),
    *,
    labels: bool = True,
    caveat: str = CAVEAT,
    run: str = "a-run",
    **changes: Any,
) -> Curve:
    rows = []
    for i, keep in enumerate(keeps):
        row = {
            "keep": float(keep),
            "merge_ratio": 1 - keep / max(keeps, default=1),
            FRECHET: 0.5 / (i + 1),
            "psnr": 18.0 + i,
            "ssim": 0.5,
        }
        row[f"{FRECHET}_recovered"] = 0.6 / (i + 1)
        if labels:
            row |= {
                "probe_top1_cls": 50.0 - i,
                "probe_top1_cls_low": 47.0 - i,
                "probe_top1_cls_high": 53.0 - i,
            }
            row |= {
                "probe_top1_mean": 40.0 + i,
                "probe_top1_mean_low": 38.0 + i,
                "probe_top1_mean_high": 43.0 + i,
            }
            row |= {"probe_top1_untrained": 24.0, "majority_top1": 13.0, "knn_top1_cls": 41.25}
            row |= {
                "probe_top1_untrained_mean": 21.5,
                "probe_top1_untrained_mean_low": 20.0,
                "probe_top1_untrained_mean_high": 23.0,
            }
        rows.append(row | changes)
    protocol = {
        "extractor": {"name": "random_v1", "description": TRUE_NAME},
        "images": 1000,
        "split": "val",
        "ema": True,
        "step": 1200,
        "data": "/somewhere/shapes",
        "data_fingerprint": "0123456789abcdef",
        "caveat": caveat,
    }
    if labels:
        protocol |= {"probe": {"kind": "exact", "train_images": 6000}, "majority_top1": 13.0}
    return Curve(run, rows, protocol)


def words(figure: Figure) -> str:
    """All text of a figure, with its line breaks as spaces."""
    said = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        said += [axes.get_xlabel(), axes.get_ylabel(), *(tick.get_text() for tick in axes.get_xticklabels())]
    for legend in figure.legends:
        said += [text.get_text() for text in legend.get_texts()]
    return " ".join(said).replace("\n", " ")


def lines(figure: Figure) -> dict[str, Any]:
    return {str(line.get_label()): line for axes in figure.axes for line in axes.get_lines()}


def drawing(page: str) -> str:
    """What a page says about its curve, after plotly's own JavaScript."""
    return page[page.rindex("Plotly.newPlot") :]


def pixels(figure: Figure, path: Path) -> np.ndarray:
    figures.save_png(figure, path)
    return np.asarray(Image.open(path).convert("RGB"))


def tiles(image: np.ndarray, rows: int, columns: int, size: int) -> list[list[np.ndarray]]:
    """The images of a grid whose images are `size` px high and wide."""
    return [
        [image[30 + r * (size + 8) :, 12 + c * (size + 8) :][:size, :size] for c in range(columns)]
        for r in range(rows)
    ]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts that cover each other, and texts that leave the figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    items = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        items += [axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels()]
    boxes = [(item.get_text(), item.get_window_extent(renderer)) for item in items if item.get_text()]
    width, height = canvas.get_width_height()
    bad = [(text, "the edge") for text, b in boxes if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height]
    # twinx repeats the ticks of the shared axis in the same place.
    for i, (text, box) in enumerate(boxes):
        bad += [(text, other) for other, b in boxes[i + 1 :] if text != other and box.overlaps(b)]
    return bad


def test_the_trade_off_draws_every_number_where_its_axis_says() -> None:
    drawn = lines(figures.tradeoff_figure(curve()))
    assert list(drawn["Fréchet distance, true source"].get_xdata()) == [9, 25, 64]
    assert drawn["Fréchet distance, true source"].get_ydata() == pytest.approx([0.5, 0.25, 0.5 / 3])
    assert drawn["Fréchet distance, recovered source"].get_ydata() == pytest.approx([0.6, 0.3, 0.2])
    assert drawn["linear probe, [CLS]"].get_ydata() == pytest.approx([50, 49, 48])
    assert drawn["linear probe, [CLS] of the untrained encoder"].get_ydata() == pytest.approx([24] * 3)
    assert drawn["always the most frequent class"].get_ydata() == pytest.approx([13] * 3)


def test_the_trade_off_shows_the_probe_interval_as_a_band() -> None:
    right = figures.tradeoff_figure(curve()).axes[1]
    band = right.collections[0]
    corners = band.get_paths()[0].vertices
    assert {(9.0, 47.0), (9.0, 53.0), (64.0, 45.0), (64.0, 51.0)} <= {
        tuple(corner) for corner in corners.tolist()
    }


def test_the_second_probe_shows_its_interval_as_bars_and_its_own_baseline() -> None:
    figure = figures.tradeoff_figure(curve())
    assert lines(figure)["linear probe, mean of kept tokens"].get_ydata() == pytest.approx([40, 41, 42])
    baseline = lines(figure)["linear probe, mean of the untrained encoder's tokens"]
    assert baseline.get_ydata() == pytest.approx([21.5] * 3)
    (bars,) = (part for part in figure.axes[1].collections if isinstance(part, LineCollection))
    ends = [[tuple(point) for point in bar.tolist()] for bar in bars.get_segments()]
    assert ends == [[(9.0, 38.0), (9.0, 43.0)], [(25.0, 39.0), (25.0, 44.0)], [(64.0, 40.0), (64.0, 45.0)]]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(legend) == len(set(legend)) == 7


def test_without_recovery_only_the_true_source_is_drawn() -> None:
    bare = curve()
    for row in bare.rows:
        del row[f"{FRECHET}_recovered"]
    assert "Fréchet distance, recovered source" not in lines(figures.tradeoff_figure(bare))
    assert "recovered source" not in drawing(figures.tradeoff_html(bare))
    assert "recovered source" in drawing(figures.tradeoff_html(curve()))


def test_the_trade_off_calls_the_distance_by_its_true_name_and_repeats_the_caveat() -> None:
    said = words(figures.tradeoff_figure(curve()))
    assert f"Fréchet distance, {TRUE_NAME}" in said
    assert CAVEAT in said
    assert "1,000 images of 'val', data 'shapes' 0123456789ab; EMA weights of step 1,200" in said
    assert "6,000 training images" in said
    assert not re.search(r"\brfid\b", said, re.IGNORECASE)
    page = drawing(figures.tradeoff_html(curve()))
    assert "distillation" in page
    assert "not ImageNet FID" in page


def test_too_few_images_for_the_distance_are_said() -> None:
    few, enough = curve(), curve()
    few.protocol["extractor"]["dim"], enough.protocol["extractor"]["dim"] = 1000, 999
    assert "biased upwards" in words(figures.tradeoff_figure(few))
    assert "biased upwards" not in words(figures.tradeoff_figure(enough))


def test_no_caveat_is_invented_where_the_protocol_has_none() -> None:
    assert "distillation" not in words(figures.tradeoff_figure(curve(caveat="")))


def test_without_labels_the_right_axis_shows_psnr_and_says_so() -> None:
    figure = figures.tradeoff_figure(curve(labels=False))
    assert lines(figure)["PSNR, true source"].get_ydata() == pytest.approx([18, 19, 20])
    assert "No labels" in words(figure)
    assert "linear probe" not in words(figure)


@pytest.mark.parametrize(
    "shown",
    [
        curve(),
        curve((36,)),
        curve(labels=False),
        curve((36, 64, 100, 144, 196, 256), caveat="A long sentence about where the labels came from. " * 5),
        curve((8, 9, 10, 11, 12, 16, 32, 64, 128, 200, 220, 240, 248, 252, 254, 256)),
        curve(run="gr-imagenet-256-" + "distilled-" * 8),
    ],
    ids=["usual", "one point", "no labels", "long caveat", "crowded counts", "long name"],
)
def test_no_text_of_the_trade_off_covers_another_or_leaves_the_figure(shown: Curve) -> None:
    assert overlaps(figures.tradeoff_figure(shown)) == []


def test_kept_counts_are_ticks_with_the_merged_share_below() -> None:
    figure = figures.tradeoff_figure(curve((16, 32, 64)))
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["16\n75%", "32\n50%", "64\n0%"]


def test_crowded_kept_counts_keep_their_ticks_but_not_all_labels() -> None:
    axes = figures.tradeoff_figure(curve((8, 9, 16, 62, 63, 64))).axes[0]
    assert list(axes.get_xticks()) == [8, 9, 16, 62, 63, 64]
    said = [tick.get_text().split("\n")[0] for tick in axes.get_xticklabels()]
    assert said == ["8", "9", "16", "", "", "64"]


def test_a_dollar_in_a_name_stays_a_dollar() -> None:
    figure = figures.tradeoff_figure(curve(run="a$b_c$d"))
    (title,) = (text for text in figure.texts if "a$b_c$d" in text.get_text())
    assert not title.get_parse_math()


def test_distances_that_span_orders_of_magnitude_get_a_logarithmic_axis_that_says_so() -> None:
    wide = curve()
    wide.rows[-1][FRECHET] = 1e-4
    assert figures.tradeoff_figure(wide).axes[0].get_yscale() == "log"
    assert "log scale" in figures.tradeoff_figure(wide).axes[0].get_ylabel()
    assert figures.tradeoff_figure(curve()).axes[0].get_yscale() == "linear"
    assert drawing(figures.tradeoff_html(wide)).count('"type":"log"') == 2
    assert drawing(figures.tradeoff_html(curve())).count('"type":"log"') == 1


def test_a_missing_measurement_is_a_gap_not_a_zero() -> None:
    partial = curve()
    del partial.rows[1][f"{FRECHET}_recovered"]
    values = lines(figures.tradeoff_figure(partial))["Fréchet distance, recovered source"].get_ydata()
    assert math.isnan(values[1])
    assert np.isfinite(values[[0, 2]]).all()


def test_a_curve_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="no rows"):
        figures.tradeoff_figure(Curve("a-run", [], curve().protocol))


def test_equal_curves_give_equal_files(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figures.save_png(figures.tradeoff_figure(curve()), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_page_holds_its_javascript_and_asks_the_network_for_nothing() -> None:
    page = figures.tradeoff_html(curve())
    assert len(page) > 2_000_000
    assert not re.search(r"<(script|link|img)[^>]+(src|href)\s*=\s*[\"']?(https?:)?//", page)


def test_the_page_draws_the_same_numbers_and_lists_the_rest_on_pointing() -> None:
    page = drawing(figures.tradeoff_html(curve()))
    assert "[50.0,49.0,48.0]" in page
    assert "[40.0,41.0,42.0]" in page
    assert '"array":[3.0,3.0,3.0],"arrayminus":[2.0,2.0,2.0]' in page
    assert "keep 25, merge_ratio 0.60938, psnr 19" in page
    assert "ssim 0.5, knn_top1_cls 41.25" in page
    assert "probe_top1_cls" not in page.replace('"legendgroup":"probe_top1_cls"', "")


def test_a_run_name_cannot_put_markup_into_the_page() -> None:
    named = Curve("<script>alert(1)</script>", curve().rows, curve().protocol)
    assert "<script>alert(1)" not in figures.tradeoff_html(named)


def test_reconstructions_are_drawn_pixel_for_pixel_most_tokens_first(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    originals, few, many = (torch.rand(2, 3, 32, 32, generator=random) * 2 - 1 for _ in range(3))
    figure = figures.reconstruction_grid(originals, {9: few, 64: many})
    grid = tiles(pixels(figure, tmp_path / "grid.png"), rows=2, columns=3, size=128)
    for row in range(2):
        for column, images in enumerate((originals, many, few)):
            expected = ((images[row] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
            expected = expected.repeat(4, 0).repeat(4, 1)
            np.testing.assert_array_equal(grid[row][column], expected)
    assert [text.get_text() for text in figure.texts] == ["original", "64 kept", "9 kept"]


@pytest.mark.parametrize("size", [8, 32, 60, 88, 95, 96])
def test_small_images_are_enlarged_to_96_px_or_more_by_a_whole_factor(size: int, tmp_path: Path) -> None:
    originals = torch.zeros(1, 3, size, size)
    image = pixels(figures.reconstruction_grid(originals, {4: originals}), tmp_path / "grid.png")
    side = (image.shape[1] - 2 * 12 - 8) // 2
    assert side >= 96
    assert side % size == 0


def test_large_images_are_not_enlarged(tmp_path: Path) -> None:
    originals = torch.zeros(1, 3, 256, 256)
    image = pixels(figures.reconstruction_grid(originals, {64: originals}), tmp_path / "grid.png")
    assert image.shape[1] == 2 * 12 + 2 * 256 + 8


def test_reconstructions_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="at 9 kept"):
        figures.reconstruction_grid(torch.zeros(2, 3, 32, 32), {9: torch.zeros(2, 3, 16, 16)})


def interiors(tile: np.ndarray, cells: int) -> np.ndarray:
    """The colour inside each cell, away from the borders."""
    step = len(tile) // cells
    return tile[step // 2 :: step, step // 2 :: step].astype(int)


def test_cells_of_one_cluster_share_a_colour_and_clusters_differ(tmp_path: Path) -> None:
    assignment = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 0]])
    figure = figures.cluster_grid(torch.zeros(1, 3, 32, 32), {4: assignment})
    tile = tiles(pixels(figure, tmp_path / "map.png"), rows=1, columns=2, size=128)[0][1]
    colours = interiors(tile, 4).reshape(16, 3)
    for slot in range(4):
        assert len(np.unique(colours[assignment[0] == slot], axis=0)) == 1
    assert len(np.unique(colours, axis=0)) == 4


def test_cells_that_were_not_merged_show_the_image_in_grey(tmp_path: Path) -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0] = 1
    figure = figures.cluster_grid(image, {16: torch.arange(16)[None]})
    tile = tiles(pixels(figure, tmp_path / "map.png"), rows=1, columns=2, size=128)[0][1]
    colours = interiors(tile, 4)
    assert (colours == colours[..., :1]).all()


def test_a_border_runs_between_clusters_and_nowhere_else(tmp_path: Path) -> None:
    assignment = torch.tensor([[0, 0, 1, 1] * 4])
    figure = figures.cluster_grid(torch.zeros(1, 3, 32, 32), {2: assignment})
    tile = tiles(pixels(figure, tmp_path / "map.png"), rows=1, columns=2, size=128)[0][1]
    white = (tile == 255).all(-1)
    assert white[:, 63].all()
    assert white.sum() == 128


def test_images_that_are_not_square_get_their_own_grid(tmp_path: Path) -> None:
    assignment = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1]])
    figure = figures.cluster_grid(torch.zeros(1, 3, 32, 64), {2: assignment})
    assert pixels(figure, tmp_path / "map.png").shape[1] == 2 * 12 + 2 * 128 + 8


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (torch.zeros(1, 15, dtype=torch.long), "do not tile"),
        (torch.zeros(2, 16, dtype=torch.long), "must be \\(1, N\\)"),
    ],
)
def test_assignments_that_do_not_fit_the_images_are_refused(assignment: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        figures.cluster_grid(torch.zeros(1, 3, 32, 32), {4: assignment})


def test_the_palette_keeps_its_first_colours_far_apart() -> None:
    colours = palette()
    assert len(np.unique(colours, axis=0)) == len(colours) == 64
    gaps = np.linalg.norm(colours[:12, None] - colours[None, :12], axis=-1) + 1e3 * np.eye(12)
    assert gaps.min() > 60
