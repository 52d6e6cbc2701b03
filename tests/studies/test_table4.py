"""The study of Table 4: what its numbers mean, that it goes on where it was left, and that it needs no platform library."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import linregress, t

import table4
from cell_queue import run_cells
from mergevq.errors import InputError
from table4_figure import draw
from table4_summary import (
    FRECHET,
    PROBE,
    Setting,
    gains,
    markdown,
    read_curves,
    read_floor,
    read_settings,
    trend,
    verdict,
    verdicts,
)

COUNTS = (9, 16, 36, 64)


def points(slope: float, *, seeds: int = 3, noise: float = 0.0) -> list[tuple[int, int, float]]:
    """Values that change by `slope` each time the count is halved, at a level of their own for every seed."""
    random = np.random.default_rng(0)
    return [
        (count, seed, 40 + 7 * seed - slope * math.log2(count) + noise * random.standard_normal())
        for count in COUNTS
        for seed in range(seeds)
    ]


def row(setting: str, count: int, seed: int, probe: float) -> dict[str, Any]:
    own = {
        "setting": setting,
        "count": count,
        "seed": seed,
        "protocol": {"alignment": setting, "steps": 4, "batch": 2},
    }
    return own | {
        PROBE: probe,
        FRECHET: 3 / count**0.5 + 0.01 * seed,
        "psnr": 20.0,
        "probe_top1_cls_all_tokens": probe,
        "probe_top1_untrained": 20.0,
        "knn_top1_cls": probe,
    }


def test_the_slope_is_what_a_value_gains_when_the_count_is_halved() -> None:
    found = trend(points(1.5))
    assert found is not None
    assert found == pytest.approx((1.5, 1.5, 1.5))


def test_what_a_seed_adds_at_every_count_changes_neither_slope_nor_interval() -> None:
    plain = points(1.5, noise=1.0)
    shifted = [(count, seed, value + 100 * seed) for count, seed, value in plain]
    assert trend(shifted) == pytest.approx(trend(plain))


def test_with_one_seed_slope_and_interval_are_those_of_linear_regression() -> None:
    rows = points(1.5, seeds=1, noise=1.0)
    reference = linregress([-math.log2(count) for count, _, _ in rows], [value for _, _, value in rows])
    wide = t.ppf(0.975, len(rows) - 2) * reference.stderr
    assert trend(rows) == pytest.approx((reference.slope, reference.slope - wide, reference.slope + wide))


def test_without_tokenizers_to_spare_there_is_no_interval_and_no_verdict() -> None:
    assert trend(points(1.5, seeds=1)[:2]) is None
    assert verdict("it rises", None, "points").startswith("undecided")


@pytest.mark.parametrize(("slope", "word"), [(1.5, "yes"), (-1.5, "NO"), (0.0, "undecided")])
def test_the_verdict_is_no_or_undecided_where_the_interval_says_so(slope: float, word: str) -> None:
    found = trend(points(slope, noise=0.1 if slope else 3.0))
    assert verdict("it rises", found, "points").startswith(f"{word}: it rises")


def test_gains_are_within_a_seed_over_the_most_tokens() -> None:
    probes = {9: {0: 55.0, 1: 60.0}, 64: {0: 50.0}}
    cells = {
        n: {seed: row("labels", n, seed, value) for seed, value in own.items()} for n, own in probes.items()
    }
    assert gains(Setting("labels", cells), 64) == [(9, 0, 5.0), (64, 0, 0.0)]


def test_a_table_shows_mean_and_deviation_over_seeds_and_how_many_there_are(tmp_path: Path) -> None:
    cells = {
        count: {seed: row("labels", count, seed, 50 + seed) for seed in range(2 if count == 9 else 3)}
        for count in COUNTS
    }
    settings = [Setting("saw the labels", cells, teacher=52.0)]
    text = markdown(settings)
    assert "| 9 | 2 | 1.00 ± 0.01 |" in text
    assert "| 16 | 3 |" in text
    assert "51.0 ± 1.0" in text
    assert verdicts(settings[0])[1].startswith("yes: the Fréchet distance rises as K falls")
    assert verdicts(settings[0])[-1].startswith("saturated: within 2 points of the teacher")
    assert "saturated" not in "".join(verdicts(Setting("saw the labels", cells, teacher=90.0)))
    assert not any("untrained encoder:" in said for said in verdicts(settings[0]))
    lost = {9: {seed: row("self", 9, seed, 19.0) for seed in range(3)}}
    assert verdicts(Setting("lost", lost))[-1].startswith("below the untrained encoder: a trend of this")
    draw(settings, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_figure_that_could_not_tell_its_settings_apart_is_refused(tmp_path: Path) -> None:
    cells = {count: {0: row("labels", count, 0, 50)} for count in COUNTS}
    draw([Setting(f"setting {number}", cells) for number in range(6)], tmp_path / "figure.png")
    with pytest.raises(InputError, match="7 settings: a figure tells 6 apart: give fewer folders"):
        draw([Setting("another", cells)] * 7, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_of_a_sweep_each_trial_counts_where_it_was_trained(tmp_path: Path) -> None:
    head = f"run,group,keep,merge_ratio,{FRECHET},psnr,{PROBE},knn_top1_cls,probe_top1_untrained"
    rows = [
        f"a{seed}-{ratio},[{ratio}],{keep},{1 - keep / 64},1,{seed},{10 * seed + keep},5,2"
        for seed in (1, 2)
        for ratio in (0.0, 0.86)
        for keep in (9, 64)
    ]
    (tmp_path / "curves.csv").write_text("\n".join([head, *rows]))
    setting = read_curves(tmp_path / "curves.csv", "sweep")
    assert setting.counts == [9, 64]
    assert setting.values(9, PROBE) == [19, 29]
    assert setting.values(9, "probe_top1_cls_all_tokens") == [74, 84]
    assert setting.values(64, PROBE) == [74, 84]


def test_curves_of_another_sweep_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "curves.csv"
    file.write_text("run,label\na,b\n")
    with pytest.raises(
        InputError, match=r"curves\.csv is no curves\.csv of a sweep over single merge ratios"
    ):
        read_curves(file, "sweep")
    file.write_text(f"run,group,keep,merge_ratio,{PROBE}\na,[0.5],64,0.0,1\n")
    with pytest.raises(InputError, match="no trial is measured at the count that it was trained at"):
        read_curves(file, "sweep")


def test_cells_come_seed_by_seed_with_every_count_in_every_setting() -> None:
    names = [cell.name for cell in table4.cells(["labels", "none"], [9, 64], 2, table4.TINY)]
    assert names[:5] == ["teacher_labels", "labels_k09_s0", "none_k09_s0", "labels_k64_s0", "none_k64_s0"]
    assert all(name.endswith("_s1") for name in names[5:-1])
    assert names[-1] == "mean_colour"


@pytest.mark.filterwarnings("ignore:36 images for")
def test_without_alignment_no_teacher_is_trained(tmp_path: Path) -> None:
    cells = table4.cells(["none"], [16], 1, table4.TINY)
    assert run_cells(cells[:1], tmp_path, say=lambda text: None).done == ["none_k16_s0"]
    (setting,) = read_settings(tmp_path)
    assert setting.teacher is None
    assert setting.title.startswith("no alignment")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:36 images for")
def test_a_study_trains_its_teacher_and_one_tokenizer_for_each_count(tmp_path: Path) -> None:
    cells = table4.cells(["other_classes"], [9, 64], 1, table4.TINY)
    assert run_cells(cells[:2], tmp_path, say=lambda text: None).failed == []
    outcome = run_cells(cells, tmp_path, say=lambda text: None)
    assert outcome.done == [
        "teacher_other_classes",
        "other_classes_k09_s0",
        "other_classes_k64_s0",
        "mean_colour",
    ]
    floor = read_floor(tmp_path)
    assert floor is not None
    assert 10 < floor["psnr"] < 20, "whatever the images, their mean colour is no good copy"
    assert f"alone: `rfd_random_v1` {floor[FRECHET]:.2f}, PSNR" in markdown(read_settings(tmp_path), floor)
    (setting,) = read_settings(tmp_path)
    assert setting.counts == [9, 64]
    assert "alignment has seen no label" in setting.title
    few, every = (setting.cells[count][0] for count in (9, 64))
    assert few["psnr"] != every["psnr"]
    assert every[PROBE] == every["probe_top1_cls_all_tokens"]  # the same features
    assert 0 < few["probe_top1_untrained"] < 100
