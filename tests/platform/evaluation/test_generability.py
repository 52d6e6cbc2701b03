"""The suites beside reconstructions: pFID, code histograms, KID, density and coverage; and the row that a paper prints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mergevq.metrics import (
    CodeUsage,
    FeatureStatistics,
    density_coverage,
    frechet_distance,
    histogram_distance,
    kernel_distance,
    to_uint8,
)
from mergevq.perturbation import RATES, decode_perturbed, decode_perturbed_source, published_grid
from mergevq_platform import cli
from mergevq_platform.cli.evaluation import suites_of
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.evaluation.options import SUITES, completed
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.published import published
from mergevq_platform.evaluation.spec import EvaluationSpec
from mergevq_platform.evaluation.tokenizer import TokenizerEvaluator
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.evaluation.worker import answers
from mergevq_platform.recipe import Recipe, resolve

pytestmark = pytest.mark.filterwarnings("ignore:.*images for .* features")


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> Recipe:
    small_recipe["evaluation"] |= {"batch": 24, "probe_images": 96, "untrained_baseline": False}
    return resolve(small_recipe)


def evaluator(recipe: Recipe, *suites: Any, batch: int = 24) -> TokenizerEvaluator:
    recipe = replace(recipe, evaluation=replace(recipe.evaluation, batch=batch))
    spec = EvaluationSpec(None, recipe, recipe.data.path, "cpu")
    return TokenizerEvaluator(
        spec, Passes(answers(TokenizerWorker, spec)), (9,), suites=completed(suites), step=0
    )


MEASURED: list[Curve] = []


@pytest.fixture
def curve(recipe: Recipe) -> Curve:
    if not MEASURED:  # the same in every test
        MEASURED.append(evaluator(recipe, "distribution", "generability").report("x"))
    return MEASURED[0]


@torch.no_grad()
def test_the_numbers_are_those_of_the_library(recipe: Recipe, curve: Curve) -> None:
    one = evaluator(recipe)
    worker, batches = TokenizerWorker(one.spec), one.measured.splits.batches["test"]
    network, tokenizer = one.measured.network, worker.tokenizer
    vocabulary = tokenizer.config.quantizer.vocabulary
    sets = [worker.batch(batches, index) for index in range(batches.num_batches)]
    images, rows = torch.cat([batch["image"] for batch in sets]), torch.cat([b["sample"] for b in sets])
    encoded = tokenizer.encode(images, 9)
    real, decoded = network(images), tokenizer.decode(encoded)

    def distance(of: torch.Tensor) -> float:
        both = [FeatureStatistics(), FeatureStatistics()]
        for statistics, features in zip(both, (real, network(of)), strict=True):
            statistics.update(features)
        return frechet_distance(*both)

    row = curve.rows[0]
    cells = [
        distance(decode_perturbed(tokenizer, encoded, rows, cell)) for cell in published_grid(vocabulary)
    ]
    assert row["prfd_random_v1"] == pytest.approx(sum(cells) / len(cells), rel=1e-3)
    sources = [distance(decode_perturbed_source(tokenizer, encoded, rows, rate)) for rate in RATES]
    assert row["prfd_random_v1_source"] == pytest.approx(sum(sources) / len(sources), rel=1e-3)
    assert row["prfd_random_v1_rate_50"] <= row["prfd_random_v1_rate_90"]
    again = tokenizer.encode(to_uint8(decoded).float() / 127.5 - 1, 9)
    usages = [CodeUsage(vocabulary), CodeUsage(vocabulary)]
    for usage, indices in zip(usages, (encoded.indices, again.indices), strict=True):
        usage.update(indices)
    assert row["chd_1d"] == pytest.approx(histogram_distance(*usages), abs=0.05)
    assert 0 < row["chd_1d_halves"] < 1
    features = network(decoded)
    assert row["reconstruction_kid_random_v1"] == pytest.approx(
        kernel_distance(features, real).mean, rel=1e-3
    )
    held = density_coverage(features, real)
    assert row["reconstruction_density_random_v1"] == pytest.approx(held.density, abs=0.02)
    assert row["reconstruction_coverage_random_v1"] == pytest.approx(held.coverage, abs=0.02)
    assert not any("fid" in key for key in row), "no Inception measured this"


def test_draws_belong_to_images_not_to_batches(recipe: Recipe, curve: Curve) -> None:
    other = evaluator(recipe, "generability", batch=17).report("x").rows[0]
    for key in ("prfd_random_v1", "prfd_random_v1_source"):
        assert other[key] == pytest.approx(curve.rows[0][key], rel=1e-3)


def test_the_suites_leave_every_other_number_and_key_as_it_was(recipe: Recipe, curve: Curve) -> None:
    plain = evaluator(recipe, "reconstruction").report("x")
    assert {key: curve.rows[0][key] for key in plain.rows[0]} == plain.rows[0]
    assert set(curve.protocol) - set(plain.protocol) == {"generability", "distribution"}
    for text in (
        "prfd_random_v1",
        "… of the source",
        "code histograms",
        "kernel distance",
        "density",
        "coverage",
    ):
        assert text in curve.markdown()
        assert text.split(" ")[-1] in curve.caption() or text == "… of the source"


def test_what_a_paper_prints_stands_apart_from_its_details(curve: Curve) -> None:
    seen: dict[str, dict[int, dict[str, float]]] = {}

    class Recorder:
        def curve(self, rows: Any, details: Any = None) -> None:
            seen.update(rows=rows, details=details)

        def metrics(self, step: int, values: Any) -> None:
            del step, values

    curve.record_rows(Recorder())  # type: ignore[arg-type]  # what it does not call
    assert {"prfd_random_v1", "reconstruction_kid_random_v1", "rfd_random_v1"} <= seen["rows"][9].keys()
    details = {
        "prfd_random_v1_source",
        "prfd_random_v1_rate_50",
        "chd_1d",
        "reconstruction_density_random_v1",
    }
    assert details <= seen["details"][9].keys()


def test_one_image_and_a_tokenizer_without_recovery_say_what_they_lack(small_recipe: dict[str, Any]) -> None:
    small_recipe["evaluation"] |= {"batch": 24, "images": 1, "untrained_baseline": False}
    small_recipe["task"] |= {"model": {"recovery": None}}
    found = evaluator(resolve(small_recipe), "distribution", "generability").report("x")
    assert "prfd_random_v1" not in found.rows[0]
    assert {"perturbed Fréchet distance", "KID, density and coverage"} <= found.protocol["lacking"].keys()
    small_recipe["evaluation"]["images"] = 30
    found = evaluator(resolve(small_recipe), "generability").report("x")
    assert "prfd_random_v1" in found.rows[0]
    assert "prfd_random_v1_source" not in found.rows[0]
    assert found.protocol["lacking"]["perturbed source"] == "the tokenizer has no Source Recovery"


def test_a_suite_beside_reconstructions_brings_them_and_is_in_no_default() -> None:
    assert completed(("generability",)) == ("reconstruction", "generability")
    assert completed(SUITES) == SUITES == ("reconstruction", "representation")


def test_the_published_row_of_a_tokenizer_says_what_is_missing(curve: Curve) -> None:
    row = published(curve)
    assert row is not None
    text = row.markdown()
    assert [title for _, title, _ in row.columns][:4] == [
        "rfd_random_v1",
        "prfd_random_v1",
        "PSNR dB",
        "SSIM",
    ]
    assert "rFID |" not in text
    assert "pFID |" not in text
    for said in (
        "no rFID: rfd_random_v1 has features",
        "give --inception",
        "no LPIPS",
        "64 images, where published",
    ):
        assert said in text, said
    standard = Curve(
        "y",
        [
            {
                "keep": 9.0,
                "rfid": 2.19,
                "pfid": 9.0,
                "psnr": 20.0,
                "ssim": 0.6,
                "lpips_vgg": 0.1,
                "code_usage": 97.0,
            }
        ],
        {
            "frechet_key": "rfid",
            "images": 50_000,
            "generability": {"frechet_key": "pfid", "rates": [0.5], "strengths": [200]},
            "extractor": {"name": "inception", "description": "the standard Inception"},
            "suites": ["reconstruction"],
            "split": "val",
            "step": 1,
            "ema": True,
            "data_fingerprint": "f" * 40,
        },
    )
    full = published(standard)
    assert full is not None
    assert [title for _, title, _ in full.columns] == [
        "rFID",
        "pFID",
        "PSNR dB",
        "SSIM",
        "LPIPS (vgg)",
        "code usage %",
    ]
    assert [said.split(":")[0] for said in full.missing] == ["no published probe"]
    assert "2.190" in full.markdown()


def test_the_exact_probe_is_no_published_one(curve: Curve) -> None:
    exact = {**curve.rows[0], "probe_top1_cls": 70.0}
    own = published(replace(curve, rows=[exact]))
    assert own is not None
    assert [title for _, title, _ in own.columns if "probe" in title] == ["probe % (exact)"]
    assert any(said.startswith("no published probe: none was asked for") for said in own.missing)
    both = published(replace(curve, rows=[{**exact, "probe_mae_top1_cls": 60.0}]))
    assert both is not None
    assert [title for _, title, _ in both.columns if "probe" in title] == ["probe % (exact)", "probe % (mae)"]
    assert not any("no published probe" in said for said in both.missing)


def generator_report(rows: list[dict[str, float]], *, standard: bool) -> GeneratorReport:
    end = "" if standard else "_random_v1"
    keys = {name: f"{name}{end}" for name in ("precision", "recall", "inception_score")}
    keys |= {
        "frechet": "gfid" if standard else "gfd_random_v1",
        "spatial_frechet": "gsfid" if standard else "x",
    }
    protocol = {
        "keys": keys,
        "images": 50_000 if standard else 500,
        "reference": {"split": "val", "images": 50_000 if standard else 100},
        "extractor": {"description": "features"},
        "guidance": {"schedule": "constant"},
        "generator": {"step": 10},
        "tokenizer": {"sha256": "0" * 64},
        "source": "recovered",
        "neighbours": "n",
        "kind": "raster",
        "kept_tokens": None,
        "steps": None,
    }
    return GeneratorReport("g", rows, {}, protocol)


def test_the_published_rows_of_a_generator_are_with_and_without_guidance() -> None:
    rows = [
        {"scale": scale, "gfid": fid, "gsfid": 5.0, "inception_score": 200.0, "precision": 0.8, "recall": 0.6}
        for scale, fid in ((1.0, 9.0), (1.5, 3.0), (2.0, 4.0))
    ]
    full = published(generator_report(rows, standard=True))
    assert full is not None
    assert [name for name, _ in full.rows] == ["without CFG", "with CFG, scale 1.5"]
    assert [title for _, title, _ in full.columns] == ["gFID", "sFID", "IS", "precision", "recall"]
    assert [said.split(":")[0] for said in full.missing] == [
        "the guidance scale is the best of 2 by the very distance that is printed"
    ]
    own = [{"scale": 1.0, "gfd_random_v1": 9.0, "precision_random_v1": 0.8, "recall_random_v1": 0.6}]
    poor = published(generator_report(own, standard=False))
    assert poor is not None
    assert [title for _, title, _ in poor.columns] == [
        "gfd_random_v1",
        "precision (random_v1)",
        "recall (random_v1)",
    ]
    for said in (
        "no gFID",
        "no numbers with CFG",
        "no sFID",
        "no Inception score",
        "500 images",
        "reference is 100",
    ):
        assert said in poor.markdown(), said
    assert poor.protocol.endswith(
        "of the same features (k = 3). raster; constant guidance; EMA weights of step 10; tokenizer 000000000000; source recovered."
    )


def test_a_class_that_no_guidance_shows_better_is_said_once() -> None:
    row = {"gfd_random_v1": 9.0, "class_top1": 12.0, "class_top1_low": 10.0}
    plain = generator_report([row | {"scale": 1.0}], standard=False)
    known = plain.protocol | {"class_probe": {"real_top1": 69.3}, "chance_top1": 8.3}
    (said,) = replace(plain, protocol=known).verdict()
    assert said.endswith("the class of 12.0% without guidance (chance 8.3%, real pictures 69.3%)")
    rows = [*plain.rows, row | {"scale": 2.0, "class_top1": 30.0, "class_top1_low": 25.0}]
    (said,) = replace(plain, rows=rows, protocol=known).verdict()
    assert said.startswith("yes: ")
    assert "12.0% without guidance, 30.0% at scale 2 (chance" in said


def test_suites_of_the_command_line_may_be_given_together() -> None:
    options = cli.build_parser().parse_args(
        ["evaluate", "--suite", "generability", "RUN", "--suite", "published"]
    )
    assert (options.run, options.suite) == ("RUN", ["generability", "published"])
    assert suites_of(options.suite) == ("generability", *SUITES)
    assert suites_of(None) == suites_of(["all"]) == suites_of(["generation"]) == SUITES
    assert suites_of(["distribution", "reconstruction", "distribution"]) == ("distribution", "reconstruction")


def test_a_suite_of_another_kind_of_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["evaluate", "--images", "folder", "--suite", "generability"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.endswith(
        "--images has generation and distribution, not generability: choose another --suite, or give a run"
    )
    assert "\n" not in said
