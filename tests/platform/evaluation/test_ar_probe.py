"""The suite `ar_probe`: the library's numbers, the same for any number of workers, off unless it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mergevq.metrics import FeatureStatistics, frechet_distance
from mergevq.metrics.ar_probe import AR_PROBES, code_bits, fit_ar_probe, sample_ar_probe
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.options import SUITES
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.spec import EvaluationSpec
from mergevq_platform.evaluation.tokenizer import TokenizerEvaluator
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.evaluation.worker import answers
from mergevq_platform.recipe import Recipe, resolve

pytestmark = pytest.mark.filterwarnings("ignore:.*images for .* features")
BITS, DISTANCE = "ar_probe_v1_bits", "ar_probe_v1_gfd_random_v1"


@pytest.fixture(autouse=True)
def small_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe of these tests: that of the product takes minutes."""
    small = replace(
        AR_PROBES["ar_probe_v1"], depth=1, width=32, heads=2, hidden=32, steps=4, batch=16, samples=40
    )
    monkeypatch.setitem(AR_PROBES, "ar_probe_v1", small)


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> Recipe:
    small_recipe["evaluation"] |= {"batch": 24, "probe_images": 64, "untrained_baseline": False}
    return resolve(small_recipe)


def evaluator(
    recipe: Recipe, *, workers: int = 0, cache: Cache | None = None, suites: tuple[Any, ...] = ("ar_probe",)
) -> TokenizerEvaluator:
    spec = EvaluationSpec(None, recipe, recipe.data.path, "cpu")
    passes = Passes(answers(TokenizerWorker, spec, workers), cache)
    return TokenizerEvaluator(spec, passes, (4, 9), suites=suites, step=0)


@torch.no_grad()
def test_the_numbers_are_those_of_the_library(recipe: Recipe) -> None:
    one = evaluator(recipe)
    curve = one.report("x")
    worker, settings = TokenizerWorker(one.spec), AR_PROBES["ar_probe_v1"]

    def images(part: str) -> torch.Tensor:
        batches = one.measured.splits.batches[part]
        return torch.cat([worker.batch(batches, index)["image"] for index in range(batches.num_batches)])

    tokenizer, network = worker.tokenizer, one.measured.network
    train, held_out = (tokenizer.encode(images(part), 9).indices for part in ("train", "test"))
    probe = fit_ar_probe(train, bits=6, settings=settings)
    row = curve.rows[1]
    assert row["keep"] == 9
    assert row[BITS] == pytest.approx(float(code_bits(probe, held_out).mean()), rel=1e-5)
    real, samples = FeatureStatistics(), FeatureStatistics()
    real.update(network(images("test")))
    samples.update(network(tokenizer.decode_indices(sample_ar_probe(probe, torch.arange(40), seed=0))))
    assert row[DISTANCE] == pytest.approx(frechet_distance(real, samples), rel=1e-3)


def test_the_protocol_has_the_budget_and_table_and_headline_the_numbers(recipe: Recipe) -> None:
    curve = evaluator(recipe).report("x")
    probe = curve.protocol["ar_probe"]
    assert (probe["name"], probe["steps"], probe["samples"], probe["train_images"]) == (
        "ar_probe_v1",
        4,
        40,
        64,
    )
    assert "source" in probe["bits"]
    for text in ("AR probe bits", "AR probe gfd_random_v1"):
        assert text in curve.markdown()
    assert "4 steps of 16 images" in curve.caption()
    narrow = [str(column.header).replace("\n", " ") for column in curve.table(width=80).columns]
    assert narrow == ["kept", "AR probe bits", "AR probe gfd_random_v1"]
    seen: dict[int, dict[str, float]] = {}

    class Recorder:
        def curve(self, rows: Any, details: Any = None) -> None:
            del details
            seen.update(rows)

        def metrics(self, step: int, values: Any) -> None:
            del step, values

    curve.record_rows(Recorder())  # type: ignore[arg-type]  # what it does not call
    assert {BITS, DISTANCE} <= seen[9].keys()


def test_a_second_evaluation_asks_for_nothing(recipe: Recipe, tmp_path: Path) -> None:
    first = evaluator(recipe, cache=Cache(tmp_path)).report("x")
    again = evaluator(recipe, cache=Cache(tmp_path))

    def refused(jobs: Any) -> Iterator[Any]:
        raise AssertionError(f"asked for {jobs}")

    again.passes = replace(again.passes, answers=refused)
    assert again.report("x").rows == first.rows


@pytest.mark.slow
@pytest.mark.ray
def test_two_workers_give_the_numbers_of_none(recipe: Recipe, ray_home: Path) -> None:
    assert evaluator(recipe, workers=2).report("x").rows == evaluator(recipe).report("x").rows


def test_the_suite_is_in_no_default_and_changes_no_other_number(recipe: Recipe) -> None:
    assert "ar_probe" not in SUITES
    plain = evaluator(recipe, suites=("reconstruction",)).report("x")
    both = evaluator(recipe, suites=("reconstruction", "ar_probe")).report("x")
    assert {key: both.rows[0][key] for key in plain.rows[0]} == plain.rows[0]
    assert set(both.rows[0]) - set(plain.rows[0]) == {BITS, DISTANCE}
    assert set(both.protocol) - set(plain.protocol) == {"ar_probe"}


@pytest.mark.parametrize(
    ("model", "evaluation", "lacking", "keys"),
    [
        ({"recovery": None}, {}, "samples of the AR probe", {BITS}),
        ({"quantizer": {"kind": "fsq", "levels": [3, 3, 3]}}, {}, "AR probe", set()),
        ({}, {"probe_images": 15}, "AR probe", set()),
        ({}, {"images": 1}, "samples of the AR probe", {BITS}),
    ],
)
def test_what_cannot_be_measured_is_said(
    small_recipe: dict[str, Any],
    model: dict[str, Any],
    evaluation: dict[str, Any],
    lacking: str,
    keys: set[str],
) -> None:
    small_recipe["evaluation"] |= {"batch": 24, "probe_images": 64, **evaluation}
    small_recipe["task"] |= {"model": model}
    if not model.get("recovery", True):
        small_recipe["task"]["losses"]["recovery"] = {"weight": 0}
    curve = evaluator(resolve(small_recipe)).report("x")
    assert set(curve.rows[0]) - {"keep", "merge_ratio"} == keys
    assert lacking in curve.protocol["lacking"]
