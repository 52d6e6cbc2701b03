"""Allocators at mean kept counts: the same for any number of workers, bounds that hold exactly, honest words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergevq.errors import InputError
from mergevq_platform import cli
from mergevq_platform.evaluation import api
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.rate_distortion import RateDistortionEvaluator
from mergevq_platform.evaluation.rate_distortion_report import RateDistortionReport
from mergevq_platform.figures.rate_distortion import counts_figure, rate_distortion_figure
from mergevq_platform.recipe import Recipe, resolve
from mergevq_platform.storage.runs import Run
from mergevq_platform.tasks.task import task_of
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.records import JOURNAL_NAME, read_metrics
from mergevq_platform.tracking.store import Store
from trained_runs import trained_run

MENU = (4, 5, 6, 9, 16)
ALLOCATORS = ("fixed", "compressed_size", "oracle")
BUDGETS = (5.0, 6.0)  # a tokenizer of two steps gains little by more


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("allocated")


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> Recipe:
    small_recipe["evaluation"] |= {"batch": 24, "probe_images": 96}  # 64 images: the last batch is partial
    return resolve(small_recipe | {"steps": 2, "checkpoint_every": 2})


@pytest.fixture
def run(recipe: Recipe, home: Path) -> Run:
    """A run in the store, trained without Ray; made once."""
    return trained_run("allocated", home, lambda: recipe)


def evaluator_of(run: Run, recipe: Recipe, **options: Any) -> RateDistortionEvaluator:
    chosen: dict[str, Any] = {
        "budgets": BUDGETS,
        "allocators": ALLOCATORS,
        "keeps": MENU,
        "step": 2,
        "device": "cpu",
    } | options
    return task_of(recipe).evaluator(recipe, run.newest_checkpoint(), EvaluationOptions(**chosen))  # type: ignore[return-value]


@pytest.fixture
def report(run: Run, recipe: Recipe, home: Path) -> RateDistortionReport:
    """Measured once: the other times the cache answers."""
    return evaluator_of(run, recipe, cache=Cache.at(home)).report("x")


def test_no_choice_of_counts_beats_the_oracle_at_its_price(report: RateDistortionReport) -> None:
    for row in report.allocators["oracle"]:
        price = row["constant"]
        cost = row["mse"] + price * row["kept"]
        others = [(found["mse"], found["keep"]) for found in report.rows]
        others += [(found["mse"], found["kept"]) for _, found in report.lines()]
        assert all(cost <= mse + price * kept + 1e-9 for mse, kept in others)


def test_one_count_for_all_has_the_numbers_of_the_curve(
    run: Run, recipe: Recipe, report: RateDistortionReport
) -> None:
    curve = evaluator_of(run, recipe, budgets=None, keeps=(5, 6)).report("x")
    for row, point in zip(report.allocators["fixed"], curve.rows, strict=True):
        assert row["kept"] == row["budget"] == point["keep"]
        for key in ("rfd_random_v1", "probe_top1_cls", "bits", "bits_source", "majority_top1"):
            assert row[key] == point[key], key
        assert row["psnr"] == pytest.approx(point["psnr"], abs=1e-12)
        assert "saved_tokens" not in row, "it is what the others are compared with"


def test_every_row_says_what_was_wanted_reached_saved_and_spent(report: RateDistortionReport) -> None:
    assert next(iter(report.allocators)) == "fixed"
    for name, row in report.lines():
        assert abs(row["kept"] - row["budget"]) < 3
        histogram = report.histogram(name, row["budget"])
        assert sum(histogram.values()) == report.protocol["images"]
        mean = sum(count * images for count, images in histogram.items()) / report.protocol["images"]
        assert row["kept"] == pytest.approx(mean)
        assert row["bits"] == pytest.approx(6 * row["kept"]), "codes of 6 bits"
        assert row["bits_count"] == (0 if name == "fixed" else pytest.approx(np.log2(len(MENU))))
        if name != "fixed":
            assert row["saved_tokens_low"] <= row["saved_tokens"] <= row["saved_tokens_high"]
            assert row["saved_tokens"] == pytest.approx(row["equal_tokens"] - row["kept"])
            assert -1 <= row.get("jpeg_rank_correlation", 0) <= 1
    assert report.at("oracle", 6.0) is report.allocators["oracle"][1]
    assert "oracle_share" in (report.at("compressed_size", 6.0) or {})


def test_the_verdict_says_no_where_nothing_is_saved(report: RateDistortionReport) -> None:
    worse = [
        row | {"saved_tokens": -1.0, "saved_tokens_low": -2.0} for row in report.allocators["compressed_size"]
    ]
    better = [
        row | {"saved_tokens": 2.0, "saved_tokens_low": 1.0, "psnr_gain_blind_low": at - 0.5}
        for at, row in enumerate(report.allocators["oracle"])
    ]
    changed = replace(report, allocators=report.allocators | {"compressed_size": worse, "oracle": better})
    (no,), (yes,) = (
        [said for said in changed.verdict() if name in said] for name in ("compressed_size", "oracle saves")
    )
    assert no.startswith("NO: compressed_size saves no tokens at equal PSNR")
    assert no.count("NO, ") == 2
    assert yes.startswith("yes: oracle saves tokens at equal PSNR")
    assert yes.count("blind to the images") == 1, "only where it gains no more than a mixture"
    partly = replace(changed, allocators={"fixed": [], "oracle": [better[0], worse[1]]}).verdict()
    assert partly[0].startswith("partly: oracle")


def test_a_number_that_rounds_to_zero_has_no_sign(report: RateDistortionReport) -> None:
    tiny = {
        "saved_tokens": -0.04,
        "saved_share": -0.004,
        "saved_tokens_mse": 0.04,
        "saved_tokens_low": -0.04,
        "saved_tokens_high": 0.06,
        "psnr_gain": -0.004,
        "oracle_share": -0.004,
        "jpeg_rank_correlation": -0.004,
    }
    rows = [row | tiny for row in report.allocators["compressed_size"]]
    changed = replace(report, allocators={"fixed": [], "compressed_size": rows})
    cells = changed.markdown().splitlines()[2].split(" | ")
    assert cells[-9:-4] == ["0.0", "0%", "0.0", "0.00", "0%"]
    assert cells[-1] == "0.00 |"
    assert "NO, 0.0 at a mean of" in changed.verdict()[0]
    assert "(0.0 to +0.1, 0.00 dB, 0% of the oracle's gain)" in changed.verdict()[0]
    assert (
        "saves no tokens: 0% of the tokens at equal PSNR (0.0, 95% interval 0.0 to +0.1)" in changed.answer()
    )


def test_a_second_evaluation_measures_nothing(
    run: Run, recipe: Recipe, home: Path, report: RateDistortionReport
) -> None:
    again = evaluator_of(run, recipe, cache=Cache.at(home))

    def refuse(jobs: Any) -> Any:
        raise AssertionError(f"{len(list(jobs))} jobs are asked for again")

    again.passes.passes = replace(again.passes.passes, answers=refuse)
    assert again.report("x") == report


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_choose_the_same_counts_and_measure_the_same(
    run: Run, recipe: Recipe, report: RateDistortionReport, ray_home: Path
) -> None:
    two = evaluator_of(run, recipe, workers=2).report("x")
    assert two.counts == report.counts
    for (name, row), (_, other) in zip(report.lines(), two.lines(), strict=True):
        assert row.keys() == other.keys()
        for key, value in row.items():
            assert other[key] == pytest.approx(value, rel=1e-6, abs=1e-9), (name, key)


def test_a_budget_that_an_allocator_cannot_have_is_said_and_the_others_are_compared(
    run: Run, recipe: Recipe, home: Path
) -> None:
    found = evaluator_of(run, recipe, budgets=(5.5,), cache=Cache.at(home)).report("x")
    assert found.allocators["fixed"] == []
    assert len(found.allocators["oracle"]) == 1
    assert any("no row of fixed at 5.5" in sentence for sentence in found.verdict())
    assert rate_distortion_figure(found).get_axes()


def test_a_report_is_read_as_it_was_written_and_says_what_its_numbers_are(
    report: RateDistortionReport, tmp_path: Path
) -> None:
    report.save(tmp_path / "report.json")
    assert RateDistortionReport.load(tmp_path / "report.json") == report
    text = report.markdown()
    for said in ("oracle", "rfd_random_v1", "Tokens saved", "of the source", "calibrated on 96 images"):
        assert said in text, said
    assert "fid" not in report.csv(), "no Inception measured this"
    assert len(report.csv().splitlines()) == 1 + len(list(report.lines()))


def test_figures_name_every_allocator(report: RateDistortionReport) -> None:
    figure = rate_distortion_figure(report)
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"fixed: one count for all", "compressed_size", "oracle"} <= set(said)
    assert len(figure.get_axes()) == 4, "PSNR, tokens saved, Fréchet distance, probe"
    titles = [axes.get_title(loc="left") for axes in counts_figure(report).get_axes()]
    assert sum(title.startswith("oracle: mean") for title in titles) == len(BUDGETS)


def test_evaluating_writes_files_and_a_run_of_its_own_in_mlflow(
    run: Run, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for attempt in range(2):
        api.evaluate("allocated", home=home, keeps=MENU, budgets=BUDGETS, out=tmp_path / str(attempt))
    assert "at equal PSNR" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "0").iterdir()}
    assert names >= {"rate_distortion.json", "table.md", "table.csv", "rate_distortion.png", "counts.png"}
    assert "few_and_many.png" in names

    recorded = read_metrics(run.directory / JOURNAL_NAME, "allocation")
    assert sorted(recorded["allocation/psnr_oracle"]) == [5, 6]
    assert recorded["allocation/wanted_tokens"] == {5: 5.0, 6: 6.0}
    assert "allocation_details/mse_oracle" in recorded
    found = list_runs(Store.at(home))
    assert len(found) == 2, "the training's run, and a linked one for the second evaluation"
    for entry in found:
        assert entry.has_charts
        assert "at equal PSNR" in entry.tags["mlflow.note.content"].splitlines()[0]


def refused(run: Run, recipe: Recipe, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        evaluator_of(run, recipe, **options).report("x")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_compared_is_said_in_one_line_before_anything_is_measured(
    run: Run, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = refused(run, recipe, allocators=("best",))
    assert "best" in names
    assert all(known in names for known in ("fixed", "compressed_size", "oracle"))
    assert "4 to 16" in refused(run, recipe, budgets=(3.0,))
    assert "one whole number" in refused(run, recipe, budgets=(6.0, 6.3))


def test_budgets_are_for_tokenizers_and_allocators_for_budgets(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    assert cli.run(["evaluate", "allocated", "--allocator", "oracle"]) == 2
    assert "--allocator goes with --budget" in capsys.readouterr().err
    assert cli.run(["evaluate", "allocated", "--budget", "6", "--suite", "reconstruction"]) == 2
    assert "leave --suite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"budgets": [3]}, r"evaluation\.budgets: a mean of 3 kept tokens lies outside the menu, 4 to 16"),
        ({"allocators": ["oracle"]}, r"evaluation\.budgets"),
        ({"budgets": [9], "allocators": ["best"]}, r"allocators holds 'best'.*give some of fixed, "),
        ({"budgets": [9], "allocators": ["learned:run"]}, r"needs this tokenizer trained first"),
    ],
)
def test_a_recipe_whose_allocators_cannot_be_compared_is_refused(
    small_recipe: dict[str, Any], evaluation: dict[str, Any], message: str
) -> None:
    small_recipe["evaluation"] |= evaluation
    with pytest.raises(InputError, match=message):
        resolve(small_recipe)


def test_a_recipe_of_a_generator_has_no_budgets(small_generator: dict[str, Any]) -> None:
    small_generator["evaluation"] |= {"budgets": [9]}
    with pytest.raises(
        InputError, match=r"evaluation\.budgets compares allocators of a tokenizer, and .* a generator"
    ):
        resolve(small_generator)
