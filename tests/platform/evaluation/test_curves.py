"""What a curve says of itself: trends need direction and size, losses are called losses."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mergevq.errors import InputError
from mergevq_platform.evaluation.curve import Curve, six_counts, tuned_curve
from mergevq_platform.evaluation.trends import concordance, rank_correlation
from mergevq_platform.figures import tradeoff_figure


def curve(**columns: list[float]) -> Curve:
    rows = [
        {"keep": keep, "merge_ratio": 1 - keep / 64, **{key: values[i] for key, values in columns.items()}}
        for i, keep in enumerate((9.0, 36.0, 64.0))
    ]
    protocol = {
        "extractor": {"name": "random_v1", "description": "features of a fixed random network"},
        "images": 100,
        "split": "val",
        "ema": True,
        "step": 7,
        "data_fingerprint": "0123456789abcdef",
        "probe": {"kind": "logistic regression", "train_images": 500},
        "majority_top1": 9.0,
        "caveat": "The teacher saw the labels.",
    }
    return Curve("run", rows, protocol)


GOOD = {
    "rfd_random_v1": [3.0, 2.0, 1.0],
    "psnr": [18.0, 20.0, 21.0],
    "probe_top1_cls": [60.0, 55.0, 50.0],
    "probe_top1_untrained": [20.0, 20.0, 21.0],
    "recovery_accuracy": [70.0, 60.0, 99.0],
    "recovery_baseline": [30.0, 25.0, 100.0],
}


def test_a_good_curve_says_yes_everywhere() -> None:
    verdict = curve(**GOOD).verdict()
    assert len(verdict) == 5
    assert all(sentence.startswith("yes") for sentence in verdict)
    assert "+29.0 points" in verdict[3], "the weakest count is named"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rfd_random_v1": [1.0, 2.0, 3.0]}, 0),
        ({"psnr": [18.00, 18.01, 18.02]}, 1),
        ({"probe_top1_cls": [50.0, 55.0, 60.0]}, 2),
        ({"probe_top1_cls": [60.0, 55.0, 20.0]}, 3),
        ({"recovery_accuracy": [70.0, 20.0, 99.0]}, 4),
    ],
)
def test_what_does_not_hold_is_said(change: dict[str, list[float]], sentence: int) -> None:
    assert curve(**GOOD | change).verdict()[sentence].startswith("NO")


def test_a_trend_within_the_intervals_of_its_ends_is_not_told() -> None:
    bounds = {"probe_top1_cls_low": [45.0, 40.0, 35.0], "probe_top1_cls_high": [75.0, 70.0, 65.0]}
    (sentence,) = [said for said in curve(**GOOD | bounds).verdict() if "as in the paper" in said]
    assert sentence.startswith("not told: the probe rises")
    apart = {"probe_top1_cls_low": [59.0, 54.0, 49.0], "probe_top1_cls_high": [61.0, 56.0, 51.0]}
    assert curve(**GOOD | apart).verdict()[2].startswith("yes: the probe rises")


def test_fewer_tokens_that_do_not_help_the_probe_are_not_hidden() -> None:
    verdict = curve(**GOOD | {"probe_top1_cls": [50.0, 55.0, 60.0]}).verdict()
    assert "on this data fewer tokens do not help the probe" in verdict[2]


def test_the_noise_of_a_plateau_does_not_outvote_the_fall_before_it() -> None:
    keeps = [9, 16, 25, 36, 49, 64]
    falling = [0.849, 0.361, 0.216, 0.251, 0.240, 0.252]
    assert rank_correlation(keeps, falling) > -0.5
    assert concordance(keeps, falling) == -1
    assert concordance(keeps, [0.3, 0.5, 0.2, 0.6, 0.4, 0.3]) == pytest.approx(0, abs=0.3)
    assert concordance(keeps, [2.0] * 6) == 0
    assert concordance([1, 2, 3], [1.0, 2.0, 0.0]) == pytest.approx(-1 / 3)


def test_tables_name_the_metric_and_carry_the_caveat() -> None:
    for text in (curve(**GOOD).markdown(), curve(**GOOD).caption()):
        assert "rfd_random_v1" in text
        assert "The teacher saw the labels." in text
        assert "rfid" not in text.lower()
    assert curve(**GOOD).csv().splitlines()[1].startswith("9.0,")


def test_a_curve_survives_the_disk(tmp_path: Path) -> None:
    curve(**GOOD).save(tmp_path / "curve.json")
    assert Curve.load(tmp_path / "curve.json") == curve(**GOOD)
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(InputError, match=r"other\.json is not a curve"):
        Curve.load(tmp_path / "other.json")


def test_six_counts_span_the_trained_range_to_all_tokens() -> None:
    counts = six_counts((121, 144, 225), 256, range(1, 257))
    assert counts[0] == 32
    assert counts[-1] == 256
    assert len(counts) == 6


def test_rank_correlation_of_a_constant_is_zero() -> None:
    assert rank_correlation([1, 2, 3], [5, 5, 5]) == 0
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3], [3, float("nan"), 1]) == 0


def test_the_rank_correlation_is_spearmans_with_ties() -> None:
    from scipy.stats import spearmanr

    drawn = np.random.default_rng(0)
    for _ in range(50):
        x, y = drawn.permutation(8), np.append(drawn.integers(0, 4, 6), [4, 5])
        assert rank_correlation(x.tolist(), y.tolist()) == float(spearmanr(x, y).statistic)


def test_a_tuned_recovery_stands_beside_what_it_was() -> None:
    painted = {"rfd_random_v1": [3.0, 2.0, 1.0], "rfd_random_v1_recovered": [4.0, 3.0, 1.0]}
    painted |= {"psnr_recovered": [17.0, 19.0, 21.0], "recovery_baseline": [30.0, 25.0, 100.0]}
    before, after = (
        replace(made, protocol=made.protocol | {"checkpoint": name, "weights_sha256": name})
        for name, accuracies in (("old", [50.0, 55.0, 99.0]), ("new", [70.0, 60.0, 98.0]))
        for made in [curve(**painted, recovery_accuracy=accuracies)]
    )
    tuned = tuned_curve(before, after)
    assert tuned.column("recovery_accuracy_before") == [50.0, 55.0, 99.0]
    assert tuned.column("recovery_accuracy") == [70.0, 60.0, 98.0]
    assert tuned.column("rfd_random_v1_recovered_before") == [4.0, 3.0, 1.0]
    assert tuned.protocol["before"] == {"checkpoint": "old", "weights_sha256": "old"}
    (sentence,) = (line for line in tuned.verdict() if "fine-tuning" in line)
    assert sentence.startswith("yes")
    assert "+5.0 points" in sentence, "the count at which nothing is merged does not count"
    (sentence,) = (line for line in tuned_curve(after, before).verdict() if "fine-tuning" in line)
    assert sentence.startswith("NO")


def test_an_exact_reconstruction_is_the_end_of_a_rise_in_curves_of_before(tmp_path: Path) -> None:
    old = curve(**GOOD | {"psnr": [17.0, 25.0, math.inf]})
    (tmp_path / "old.json").write_text(json.dumps(dataclasses.asdict(old), indent=1))
    assert "Infinity" in (tmp_path / "old.json").read_text()
    read = Curve.load(tmp_path / "old.json")
    assert read == old
    sentence = next(line for line in read.verdict() if "PSNR" in line)
    assert sentence.startswith("yes")
    assert "rank correlation +1.00, 17 to inf" in sentence
    assert read.table().row_count == 3
    assert tradeoff_figure(read)


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("key", ["rfd_random_v1", "psnr", "probe_top1_cls"])
def test_what_is_no_number_is_null_in_json_and_missing_when_it_is_read(
    tmp_path: Path, odd: float, key: str
) -> None:
    values = [*GOOD[key][:2], odd]
    written = curve(**GOOD | {key: values})
    written.save(tmp_path / "curve.json")
    raw = json.loads((tmp_path / "curve.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert raw["rows"][2][key] is None
    read = Curve.load(tmp_path / "curve.json")
    assert key not in read.rows[2]
    for either in (written, read):
        assert either.verdict()
        assert either.markdown()
        assert either.csv()
        assert tradeoff_figure(either)


def test_a_comparison_takes_the_fullest_curve_of_a_run_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mergevq_platform.evaluation.compare import entries_of
    from mergevq_platform.figures.compared import Entry, common_notes

    run = tmp_path / "ray" / "six"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text("name: six")
    whole = curve(**GOOD)
    for at, (folder, made) in enumerate(
        (("curve", whole), ("curve-later", replace(whole, rows=whole.rows[:1])))
    ):
        (run / folder).mkdir()
        made.save(run / folder / "curve.json")
        os.utime(run / folder / "curve.json", (at, at))
    (entry,) = entries_of("six", home=tmp_path)
    assert entry.curve == whole
    assert "six: curve (3 points), not the newer curve-later (1 points)" in capsys.readouterr().err

    protocol = {**whole.protocol, "step": 9}
    other = Entry("nine", "nine", replace(whole, protocol=protocol))
    assert "EMA weights of step 7 and EMA weights of step 9" in common_notes([entry, other])[0]
