"""What can be asked of an evaluation: suites, published probes, seeds; and what it says of numbers that mean little."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mergevq.errors import InputError
from mergevq.metrics import knn_votes, linear_probe, precision_recall
from mergevq.metrics.sgd_probe import PUBLISHED
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.probing import LabelledFeatures, ProbeJob, Probes
from mergevq_platform.evaluation.report import write
from mergevq_platform.evaluation.spec import EvaluationSpec
from mergevq_platform.evaluation.tokenizer import SUITES, TokenizerEvaluator
from mergevq_platform.evaluation.tokenizer_representation import nearest
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.evaluation.worker import answers
from mergevq_platform.recipe import Recipe, resolve


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> Recipe:
    small_recipe["evaluation"] |= {"batch": 24, "probe_images": 96, "untrained_baseline": False}
    return resolve(small_recipe)


def evaluator(recipe: Recipe, keeps: tuple[int, ...] = (4, 9, 16), **options: Any) -> TokenizerEvaluator:
    spec = EvaluationSpec(None, recipe, recipe.data.path, "cpu")
    return TokenizerEvaluator(spec, Passes(answers(TokenizerWorker, spec)), keeps, step=0, **options)


def test_suites_part_the_table_and_the_files(recipe: Recipe, tmp_path: Path) -> None:
    keys = {}
    for suite in SUITES:
        one = evaluator(recipe, suites=(suite,))
        curve = one.report("x")
        keys[suite] = set(curve.rows[0]) - {"keep", "merge_ratio"}
        files = write(curve, one, tmp_path / suite)
        assert Curve.load(files["curve.json"]) == curve
        written = [path for path in (tmp_path / suite).rglob("*") if path.is_file()]
        assert {str(path.relative_to(tmp_path / suite)) for path in written} == set(files)
        assert curve.verdict()
        for name, path in files.items():
            if name.endswith(".png") and "/" not in name:
                assert min(Image.open(path).size) > 200, name
        expected = (
            {"tradeoff.png", "reconstructions.png", "clusters.png", "worst.png", "codes.png"}
            if suite == "reconstruction"
            else {"neighbours.png"}
        )
        assert {name for name in files if name.endswith(".png") and "/" not in name} == expected
        shown = {name.split("+")[0] for name in files if name.startswith("images/")}
        assert shown == (
            {"images/reconstructions", "images/clusters"} if suite == "reconstruction" else set()
        )
        if suite == "representation":
            assert one.findings.neighbours is not None
            assert len(one.findings.neighbours) == recipe.evaluation.shown_images == 2
    assert not keys["reconstruction"] & keys["representation"]
    assert "psnr" in keys["reconstruction"]
    assert "probe_top1_cls" in keys["representation"]


def test_likeness_of_reconstructions_is_the_librarys(recipe: Recipe) -> None:
    one = evaluator(recipe, (9,), suites=("reconstruction",))
    curve = one.report("x")
    worker, batches = TokenizerWorker(one.spec), one.measured.splits.batches["test"]
    real, painted = [], []
    for index in range(batches.num_batches):
        images = worker.batch(batches, index)["image"]
        real.append(one.measured.network(images))
        with torch.no_grad():
            painted.append(one.measured.network(worker.tokenizer.decode(worker.tokenizer.encode(images, 9))))
    expected = precision_recall(torch.cat(painted), torch.cat(real))
    row = curve.rows[0]
    assert row["reconstruction_precision_random_v1"] == pytest.approx(expected.precision)
    assert row["reconstruction_recall_random_v1"] == pytest.approx(expected.recall)
    assert not any("inception_score" in key or "sfd" in key for key in row), "no Inception saw these"
    assert "precision" in curve.markdown()
    assert "3 nearest neighbours" in curve.protocol["precision_recall"]


def test_seeds_repeat_what_is_random_and_nothing_else(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = dataclasses.replace(PUBLISHED["mergevq"], epochs=2)
    monkeypatch.setitem(PUBLISHED, "mergevq", quick)
    settings = dataclasses.replace(recipe.evaluation, untrained_baseline=True, probes=("mergevq",))
    recipe = dataclasses.replace(recipe, evaluation=settings)
    many, once = evaluator(recipe, seeds=2), evaluator(recipe)
    row, single = many.representation.row(9), once.representation.row(9)
    repeated = {key.removesuffix("_std") for key in row if key.endswith("_std")}
    assert repeated
    assert all("untrained" in key or "mergevq" in key for key in repeated)
    assert not any(key.endswith("_std") for key in single)
    for key in ("probe_top1_cls", "knn_top1_cls"):
        assert row[key] == single[key]
    protocol = many.protocol()
    assert protocol["probe"]["untrained_seeds"] == 2
    assert protocol["probe"]["published"]["mergevq"]["optimizer"] == "adamw"


def test_the_probes_of_a_job_are_the_librarys_with_what_was_chosen() -> None:
    generator = np.random.default_rng(0)
    train_y, test_y = generator.integers(0, 3, 60), generator.integers(0, 3, 30)
    means = generator.normal(size=(3, 8))
    train_x, test_x = (
        (means[y] + generator.normal(size=(len(y), 8))).astype(np.float32) for y in (train_y, test_y)
    )
    features = LabelledFeatures(train_x, train_y, test_x, test_y)
    spec = SimpleNamespace(device="cpu")
    probes = Probes(Passes(answers(TokenizerWorker, spec)))
    found = probes.probe({}, features, "cls")
    expected = linear_probe(*map(torch.from_numpy, (train_x, train_y, test_x, test_y)))
    assert (found["probe_top1_cls"], found["probe_C_cls"]) == (expected.top1, expected.C)
    votes = knn_votes(*map(torch.from_numpy, (train_x, train_y, test_x, test_y)))
    voted = probes.neighbours({}, features, "cls")
    assert voted["knn_top1_cls"] == voted[f"knn_top1_cls_k{voted['knn_k_cls']:.0f}"] == votes.result().top1


def test_one_class_and_broken_features_are_said() -> None:
    x, y = np.zeros((10, 4), np.float32), np.arange(10) % 2
    for job, message in (
        (ProbeJob(LabelledFeatures(x, np.zeros_like(y), x, y)), "holds one class"),
        (ProbeJob(LabelledFeatures(x * math.nan, y, x, y)), "hold NaN or infinity: the tokenizer diverged"),
    ):
        with pytest.raises(InputError, match=message):
            job.on_rows(torch.device("cpu"), 0, 1)


def test_fewer_images_than_features_are_said_loudly(recipe: Recipe) -> None:
    with pytest.warns(UserWarning, match="64 images for 200 features"):
        curve = evaluator(recipe, (16,), suites=("reconstruction",)).report("x")
    from mergevq_platform.figures.series import notes

    assert any("strongly biased upwards" in note for note in notes(curve))


def test_nearest_images_are_those_of_the_largest_cosine() -> None:
    generator = np.random.default_rng(0)
    bank, queries = generator.normal(size=(50, 6)), generator.normal(size=(4, 6))
    found = nearest(bank, queries * 100, 3)
    for query, rows in zip(queries, found, strict=True):
        cosines = [float(query @ row) / np.linalg.norm(query) / np.linalg.norm(row) for row in bank]
        assert list(rows) == sorted(range(50), key=lambda i: -cosines[i])[:3]
