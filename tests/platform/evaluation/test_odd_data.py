"""An evaluation of data as people have them: it measures what can be measured, says what cannot, and does not fail."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from mergevq.config import merged
from mergevq.errors import InputError
from mergevq_platform import loop
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation import neighbours
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.report import write
from mergevq_platform.evaluation.spec import EvaluationSpec
from mergevq_platform.evaluation.tokenizer import TokenizerEvaluator
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.evaluation.worker import answers
from mergevq_platform.recipe import Recipe, complete, locate, resolve
from mergevq_platform.sweeps import Grid, Sweep, choice, objectives
from mergevq_platform.sweeps.driver import sweep
from mergevq_platform.sweeps.objectives import sample_class_top1
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tasks.task import task_of

KEEPS = (4, 9, 16)


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> Recipe:
    small_recipe["evaluation"] |= {"batch": 24, "probe_images": 96}
    return resolve(small_recipe)


@pytest.fixture
def changed(image_set: Path, tmp_path: Path) -> Callable[..., str]:
    """A copy of the images as bare Parquet, with other labels, other bytes, or fewer rows, by split."""

    def make(
        labels: dict[str, Callable[[np.ndarray], Any]] | None = None,
        bad: dict[str, list[int]] | None = None,
        rows: dict[str, int] | None = None,
        name: str = "changed",
    ) -> str:
        directory = tmp_path / name
        directory.mkdir()
        for split in ("train", "val"):
            (source,) = Path(image_set).glob(f"{split}-*.parquet")
            table = pq.read_table(source).replace_schema_metadata(None)
            table = table.slice(0, (rows or {}).get(split, len(table)))
            if split in (labels or {}):
                assert labels is not None
                found = labels[split](table["label"].to_numpy())
                table = table.set_column(table.schema.get_field_index("label"), "label", pa.array(found))
            images = table["image"].to_pylist()
            for row in (bad or {}).get(split, ()):
                images[row] = images[row] | {"bytes": images[row]["bytes"][:40]}
            column = pa.array(images, table.schema.field("image").type)
            table = table.set_column(table.schema.get_field_index("image"), "image", column)
            pq.write_table(table, directory / f"{split}-00000.parquet")
        return str(directory)

    return make


def measured(
    recipe: Recipe, data: str, tmp_path: Path, keeps: tuple[int, ...] = KEEPS, cache: Cache | None = None
) -> Curve:
    """The curve, with all that an evaluation writes down of it."""
    spec = EvaluationSpec(None, recipe, data, "cpu")
    one = TokenizerEvaluator(spec, Passes(answers(TokenizerWorker, spec), cache), keeps, step=0)
    curve = one.report("odd")
    files = write(curve, one, tmp_path / "out")
    read = Curve.load(files["curve.json"])
    assert read == curve
    json.loads(files["curve.json"].read_text(), parse_constant=lambda text: pytest.fail(text))
    assert curve.table(80).row_count == len(keeps)
    return curve


def some_without(labels: np.ndarray, none: int = -1) -> np.ndarray:
    return np.where(np.arange(len(labels)) % 4 == 1, none, labels)


@pytest.mark.parametrize("splits", [("train",), ("val",), ("train", "val")])
def test_images_without_a_label_stay_out_of_the_probes_and_are_counted(
    recipe: Recipe, changed: Any, tmp_path: Path, splits: tuple[str, ...]
) -> None:
    data = changed(labels=dict.fromkeys(splits, some_without))
    curve = measured(recipe, data, tmp_path)
    assert 0 <= curve.rows[0]["probe_top1_cls"] <= 100
    assert 0 <= curve.rows[0]["knn_top1_untrained"] <= 100
    expected = {"train": 24 * ("train" in splits), "test": 16 * ("val" in splits)}
    assert curve.protocol["probe"]["unlabelled"] == expected
    assert curve.protocol["probe"]["train_images"] == 96 - expected["train"]
    assert f"{expected['train']} training and {expected['test']} other images" in curve.caption()


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            {"train": np.zeros_like, "val": np.zeros_like},
            "the train set holds one class (96 labelled images)",
        ),
        ({"val": np.zeros_like}, "the val set holds one class (64 labelled images)"),
        ({"train": lambda y: np.where(y == y[0], y, -1)}, "the train set holds one class"),
        (
            {"train": lambda y: np.full_like(y, -1), "val": lambda y: np.full_like(y, -1)},
            "no labels: no probe",
        ),
        ({"val": lambda y: np.full_like(y, -1)}, "no labels in 'val': no probe"),
        ({"train": lambda y: np.arange(len(y))}, "no class of the train set has two images"),
    ],
)
def test_labels_that_make_no_probe_leave_the_rest_of_the_curve(
    recipe: Recipe, changed: Any, tmp_path: Path, labels: Any, said: str
) -> None:
    curve = measured(recipe, changed(labels=labels), tmp_path)
    assert_without_probe(curve, said)


def test_a_curve_of_one_kept_count_needs_no_probe(recipe: Recipe, changed: Any, tmp_path: Path) -> None:
    curve = measured(recipe, changed(labels={"val": np.zeros_like}), tmp_path, (9,))
    assert_without_probe(curve, "the val set holds one class (64 labelled images)")


def assert_without_probe(curve: Curve, said: str) -> None:
    assert "psnr" in curve.rows[0]
    assert not any("probe" in key or "knn" in key for row in curve.rows for key in row)
    assert "probe" not in curve.protocol
    assert any(said in sentence and sentence.endswith(": no probe") for sentence in curve.verdict())
    assert f"No probe: {said.removesuffix(': no probe')}" in curve.caption()
    assert "No probe" in curve.markdown()


def test_fewer_classes_than_in_train_and_gaps_in_the_numbers_are_no_hindrance(
    recipe: Recipe, changed: Any, tmp_path: Path
) -> None:
    labels = {"train": lambda y: 10 * (y % 4), "val": lambda y: np.where(y % 2, 30, 70)}
    curve = measured(recipe, changed(labels=labels), tmp_path)
    assert "probe_top1_cls" in curve.rows[0]
    assert "lacking" not in curve.protocol


@pytest.mark.parametrize("cached", [False, True])
def test_images_that_cannot_be_decoded_are_left_out_by_name(
    recipe: Recipe, changed: Any, tmp_path: Path, cached: bool
) -> None:
    data = changed(bad={"val": [0, 30], "train": [5]})
    cache = Cache.at(tmp_path) if cached else None
    curve = measured(recipe, data, tmp_path, cache=cache)
    assert curve.protocol["images"] == 62
    assert curve.protocol["probe"]["train_images"] == 95
    assert curve.protocol["left_out"] == {"val": [0, 30], "train": [5]}
    assert "2 images of 'val' cannot be decoded: left out" in curve.verdict()
    assert "1 image of 'train' cannot be decoded: left out" in curve.verdict()
    if cached:
        assert measured(recipe, data, tmp_path, cache=cache).rows == curve.rows


@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_a_validation_split_of_very_few_images_gives_what_so_many_allow(
    recipe: Recipe, changed: Any, tmp_path: Path, images: int
) -> None:
    curve = measured(recipe, changed(rows={"val": images}), tmp_path)
    row = curve.rows[0]
    assert "psnr" in row
    assert ("rfd_random_v1" in row) == (images > 1)
    assert ("reconstruction_recall_random_v1" in row) == (images > 3)
    assert any("no Fréchet distance" in sentence for sentence in curve.verdict()) == (images == 1)
    assert any("no precision and recall" in sentence for sentence in curve.verdict()) == (images < 4)


def test_few_training_images_and_limits_above_the_splits_are_no_hindrance(
    recipe: Recipe, changed: Any, tmp_path: Path
) -> None:
    settings = dataclasses.replace(
        recipe.evaluation, images=10_000, probe_images=10_000, batch=500, probes=("mergevq", "mae", "dinov2")
    )
    quick = dataclasses.replace(recipe, evaluation=settings)
    data = changed(rows={"train": 7}, labels={"train": lambda y: np.array([0, 0, 1, 1, 2, 3, 3])})
    curve = measured(quick, data, tmp_path)
    assert curve.protocol["probe"]["train_images"] == 7
    assert curve.rows[0]["knn_k_cls"] < 7


def without_validation(tree: dict[str, Any], tmp_path: Path) -> None:
    (source,) = Path(tree["data"]["path"]).glob("train-*.parquet")
    (tmp_path / "train_only").mkdir()
    pq.write_table(pq.read_table(source), tmp_path / "train_only" / "train-00000.parquet")
    tree["data"]["path"] = str(tmp_path / "train_only")


def undecodable_validation(tree: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(tree["data"]["path"], tmp_path / "bad", ignore=shutil.ignore_patterns("manifest*"))
    (file,) = (tmp_path / "bad").glob("val-*.parquet")
    table = pq.read_table(file).replace_schema_metadata(None)
    column = pa.array([{"bytes": b"no image", "path": None}] * len(table))
    table = table.set_column(table.schema.get_field_index("image"), "image", column)
    pq.write_table(table, file)
    tree["data"]["path"] = str(tmp_path / "bad")


def no_extractor(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["evaluation"]["extractor"] = {"kind": "inception", "weights": "nowhere.pth"}


def no_lpips(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["evaluation"]["lpips"] = {"backbone": "vgg16.pth", "heads": "vgg.pth"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_validation, "has no split 'val'.*--no-evaluation"),
        (undecodable_validation, "none of the 16 images of 'val' can be decoded"),
        (no_extractor, "evaluation.extractor.weights: .*nowhere.pth"),
        (no_lpips, "evaluation.lpips.*: .*(vgg16|vgg).pth"),
    ],
)
def test_what_an_evaluation_could_not_begin_with_is_refused_before_the_first_step(
    small_recipe: dict[str, Any], tmp_path: Path, spoil: Any, said: str
) -> None:
    spoil(small_recipe, tmp_path)
    recipe = resolve(small_recipe)
    with pytest.raises(InputError, match=said):
        preflight(recipe)
    preflight(recipe, evaluated=False)


def test_weights_by_name_are_found_for_every_recipe_in_one_folder(
    small_recipe: dict[str, Any],
    small_generator: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = ("inception.pth", "vgg16.pth", "vgg.pth", "dino.pth")
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setenv("MERGEVQ_WEIGHTS", str(tmp_path))
    lpips = {"backbone": "vgg16.pth", "heads": "/of/another/machine/vgg.pth"}
    for tree in (small_recipe, small_generator):
        tree["evaluation"] |= {"extractor": {"kind": "inception", "weights": "inception.pth"}, "lpips": lpips}
        found: Any = locate(complete(tree)).evaluation
        assert found.extractor.weights == str(tmp_path / "inception.pth")
        assert (found.lpips.backbone, found.lpips.heads) == (
            str(tmp_path / "vgg16.pth"),
            str(tmp_path / "vgg.pth"),
        )
    small_recipe["task"]["initial_weights"] = "dino.pth"
    assert locate(complete(small_recipe)).tokenizer.initial_weights == str(tmp_path / "dino.pth")


def test_the_untrained_tokenizer_needs_neither_teacher_nor_training_images(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = resolve(small_recipe)
    torch.manual_seed(recipe.seed + 1)
    expected = loop.build(recipe, task_of(recipe).open_data(recipe)).model().state_dict()
    small_recipe["task"]["losses"]["alignment"] = {"kind": "stand_in", "directory": "nowhere"}
    small_recipe["data"]["path"] = str(tmp_path / "nowhere")
    spec = EvaluationSpec(None, resolve(small_recipe), str(tmp_path / "nowhere"), "cpu")
    found = TokenizerWorker(spec).untrained(1).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


CLASSIFIERS = ("classifier", "finetune", "probe")


def classes_task(kind: str, tokenizer: Path) -> dict[str, Any]:
    return {
        "classifier": {
            "kind": "classifier",
            "model": {"classes": 12, "image_size": 16, "num_stages": 2, "width": 8},
        },
        "finetune": {"kind": "finetune", "tokenizer": str(tokenizer)},
        "probe": {"kind": "probe", "tokenizer": str(tokenizer), "settings": {"rate_factors": [0.1, 1.0]}},
    }[kind]


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_what_classifies_learns_from_labelled_images_and_is_judged_by_them(
    small_recipe: dict[str, Any], tokenizer_directory: Path, changed: Any, tmp_path: Path, kind: str
) -> None:
    data = changed(labels=dict.fromkeys(("train", "val"), some_without), bad={"val": [0, 2, 30]})
    recipe = resolve(
        small_recipe
        | {
            "task": classes_task(kind, tokenizer_directory),
            "data": {"path": data, "views": {"image_size": 16}},
            "evaluation": {"batch": 2, "every": 4, "validation_images": 32},
            "steps": 4,
        }
    )
    run = tmp_path / "run"
    run.mkdir()
    host = LocalHost(run)
    preflight(recipe)
    loop.train(recipe, loop.Worker(), host)
    assert (
        "48 of the 192 images of 'train' have no label: they are not used for classification" in host.warnings
    )
    validated = {
        name: value for _, values in host.history for name, value in values.items() if "val/" in name
    }
    assert len(validated) == (2 if kind == "probe" else 1)
    assert all(0 <= value <= 100 for value in validated.values())
    if kind == "classifier":
        return
    report = task_of(recipe).evaluator(recipe, str(run), EvaluationOptions(device="cpu")).report("odd")
    (found,) = report.rows
    assert (found["unlabelled"], found["undecodable"]) == (16, 3)
    assert (found["top1"] * 45 / 100) == pytest.approx(round(found["top1"] * 45 / 100)), (
        "of 64 - 16 - 3 images"
    )
    said = report.verdict()
    assert said[0].startswith("top-1 ")
    assert said[1:3] == ["16 images of 'val' have no label: left out", "3 images cannot be decoded: left out"]
    assert (len(said) == 4) == (kind == "probe"), "a probe's head was chosen by training images"
    none = changed(labels={"val": lambda y: np.full_like(y, -1)}, name="none")
    report = (
        task_of(recipe).evaluator(recipe, str(run), EvaluationOptions(device="cpu", data=none)).report("odd")
    )
    assert "top1" not in report.rows[0]
    assert report.rows[0]["unlabelled"] == 64
    assert report.verdict() == ["no top-1: no image of 'val' has a label"]


def generators_report(
    tree: dict[str, Any], data: str, tmp_path: Path, **changes: Any
) -> tuple[GeneratorReport, dict[str, Path]]:
    """The report of a generator before its first step, with all that is written down of it."""
    recipe = resolve(merged(tree, {"data": {"path": data}, **changes}) | {"steps": 1, "checkpoint_every": 1})
    run = tmp_path / "generator"
    if not run.exists():
        run.mkdir()
        loop.train(recipe, loop.Worker(), LocalHost(run))
    one = task_of(recipe).evaluator(recipe, str(run), EvaluationOptions(device="cpu", scales=[2.0]))
    report: GeneratorReport = one.report("odd")
    files = write(report, one, tmp_path / "report")
    assert GeneratorReport.load(files["report.json"]) == report
    json.loads(files["report.json"].read_text(), parse_constant=lambda text: pytest.fail(text))
    assert report.table().row_count == 6
    return report, files


def test_a_generator_on_a_set_without_labels_is_judged_without_classes(
    small_generator: dict[str, Any], changed: Any, tmp_path: Path
) -> None:
    none = dict.fromkeys(("train", "val"), lambda y: np.full_like(y, -1))
    report, _ = generators_report(small_generator, changed(labels=none), tmp_path)
    assert "gfd_random_v1" in report.rows[0]
    assert not any("class" in key for row in report.rows for key in row)
    assert "none of the train images has a label: no class" in report.verdict()
    assert "No class: none of the train images has a label" in report.caption()
    with pytest.raises(InputError, match="none of the train images has a label: no class"):
        sample_class_top1().of(report, None)


def test_a_generator_is_judged_by_the_labelled_images_that_can_be_decoded(
    small_generator: dict[str, Any], changed: Any, tmp_path: Path
) -> None:
    data = changed(labels=dict.fromkeys(("train", "val"), some_without), bad={"val": [3, 40], "train": [0]})
    report, _ = generators_report(small_generator, data, tmp_path)
    assert report.protocol["class_probe"]["train_images"] == 192 - 48 - 1
    assert report.protocol["reference"]["images"] == 62
    assert report.protocol["left_out"] == {"val": [3, 40], "train": [0]}
    assert "2 images of 'val' cannot be decoded: left out" in report.verdict()


@pytest.mark.parametrize(
    "images", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 4]
)
def test_a_generator_is_judged_against_as_few_images_as_there_are(
    small_generator: dict[str, Any], changed: Any, tmp_path: Path, images: int
) -> None:
    report, _ = generators_report(small_generator, changed(rows={"val": images}), tmp_path)
    assert ("gfd_random_v1" in report.rows[0]) == (images > 1)
    assert ("recall_random_v1" in report.rows[0]) == (images > 3)
    assert any("no Fréchet distance" in sentence for sentence in report.verdict()) == (images == 1)


@pytest.mark.slow
def test_a_generator_may_be_judged_on_the_images_that_it_learnt_from(
    small_generator: dict[str, Any], image_set: Path, tmp_path: Path
) -> None:
    changes = {"evaluation": {"images": 40}}
    report, _ = generators_report(small_generator, str(image_set), tmp_path)
    again, _ = generators_report(
        merged(small_generator, {"data": {"evaluation_split": "train"}}), str(image_set), tmp_path, **changes
    )
    assert again.rows[0].keys() == report.rows[0].keys()


def nearest(small: np.ndarray, train: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    spec = SimpleNamespace(device="cpu")
    return neighbours.nearest(Passes(answers(TokenizerWorker, spec)), small, {}, train, {}, k=k)


def test_neighbours_in_blocks_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    side = neighbours.SIDE
    small, train = (generator.integers(0, 256, (count, 3 * side**2), dtype=np.uint8) for count in (30, 50))
    train[7] = small[4]
    train[9] = small[5].reshape(3, side, side)[..., ::-1].reshape(-1)
    whole = nearest(small, train, 3)
    assert (whole[1][4, 0], whole[1][5, 0]) == (7, 50 + 9)
    monkeypatch.setattr(neighbours, "BLOCK", 8)
    blocks = nearest(small, train, 3)
    assert np.array_equal(blocks[1], whole[1])
    assert blocks[0] == pytest.approx(whole[0], abs=0.3)


def test_a_copied_image_is_its_own_nearest_neighbour_even_mirrored() -> None:
    side = neighbours.SIDE
    train = np.random.default_rng(0).integers(0, 256, (20, 3 * side**2), dtype=np.uint8)
    mirrored = train[3].reshape(3, side, side)[:, :, ::-1].reshape(-1)
    distances, numbers = nearest(np.stack([train[7], mirrored]), train, 2)
    assert numbers[:, 0].tolist() == [7, 23]
    assert distances[:, 0] == pytest.approx(0, abs=1e-2)
    assert (distances[:, 1] > 50).all()


def test_a_sweep_whose_objective_needs_a_probe_is_refused_where_there_can_be_none(
    small_recipe: dict[str, Any], changed: Any, tmp_path: Path
) -> None:
    for name, labels, said in (
        ("none", lambda y: np.full_like(y, -1), "has no labels"),
        ("one", np.zeros_like, "has one class"),
    ):
        small_recipe["data"]["path"] = changed(labels=dict.fromkeys(("train", "val"), labels), name=name)
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(small_recipe))
        definition = Sweep(
            name="odd",
            question="which rate?",
            recipe=str(file),
            space={"optimizer.learning_rate": choice(1e-3, 1e-4)},
            search=Grid(),
            objectives=(objectives.mean_probe(),),
        )
        with pytest.raises(InputError, match=f"mean_probe_cls needs a probe, but 'train' of .* {said}"):
            sweep(definition, home=tmp_path / "home", name=name)
