"""Sampling and evaluating generators: the same codes for any number of workers, nothing sampled twice, honest names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mergevq.errors import InputError
from mergevq.generation import SamplingConfig
from mergevq.metrics import to_uint8
from mergevq_platform import cli, loop
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation.generator_report import GeneratorReport
from mergevq_platform.evaluation.generator_worker import GeneratorWorker
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.recipe import resolve
from mergevq_platform.sampling.job import SamplingJob, SamplingWorker, sample_images
from mergevq_platform.sampling.pipeline import (
    SamplingPipeline,
    class_labels,
    class_names,
    open_sampling,
)
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.tasks.task import task_of
from mergevq_platform.tracking.store import Store
from trained_runs import trained_run


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generating")


def trained(name: str, kind: str, tree: dict[str, Any], home: Path) -> Run:
    """A generator's run in the store, trained without Ray; made once."""
    task = tree["task"] | {"preset": f"test_{kind}"}
    return trained_run(name, home, lambda: resolve(tree | {"steps": 8, "task": task}))


@pytest.fixture
def run(small_generator: dict[str, Any], home: Path) -> Run:
    return trained("mergear", "mergear", small_generator, home)


@pytest.fixture
def random_order(small_generator: dict[str, Any], home: Path) -> Run:
    return trained("randar", "random_order", small_generator, home)


def job(
    run: Run, out: Path, *, num: int = 20, batch: int = 6, classes: tuple[str, ...] = (), **of: Any
) -> SamplingJob:
    spec = open_sampling(run.location, **of)
    names = class_names(spec.recipe)
    return SamplingJob(spec, str(out), class_labels(classes, names), names, num, batch)


def evaluator_of(run: Run, **options: Any) -> Any:
    recipe = checkpoints.recipe_of(Path(run.newest_checkpoint()))
    return task_of(recipe).evaluator(
        recipe, run.newest_checkpoint(), EvaluationOptions(device="cpu", **options)
    )


def codes(out: Path) -> dict[str, np.ndarray]:
    parts = [np.load(path) for path in sorted((out / "codes").glob("*.npz"))]
    return {name: np.concatenate([part[name] for part in parts]) for name in ("indices", "label", "sample")}


def test_images_are_the_decoded_codes_with_classes_in_turn(run: Run, tmp_path: Path) -> None:
    wanted = job(run, tmp_path / "out", classes=("heart", "disc", "3"))
    manifest = sample_images(wanted, progress=False)
    made = codes(tmp_path / "out")
    assert made["sample"].tolist() == list(range(20))
    assert made["label"][:4].tolist() == [10, 0, 3, 10]
    assert made["indices"].shape == (20, 16)
    images = to_uint8(SamplingPipeline(wanted.spec).decode(torch.from_numpy(made["indices"]))).permute(
        0, 2, 3, 1
    )
    for sample, label in zip(made["sample"], made["label"], strict=True):
        stored = np.asarray(Image.open(wanted.image(int(sample), int(label))))
        assert np.abs(stored.astype(int) - images[sample].numpy()).max() <= 1
    assert (tmp_path / "out" / "pictures" / "000000-heart.png").is_file()
    assert Image.open(tmp_path / "out" / "contact_sheet.png").size[0] > 100
    assert manifest["tokenizer"]["sha256"] == wanted.spec.tokenizer.sha256
    assert (manifest["seed"], manifest["guidance"]["scale"], manifest["kept_tokens"]) == (0, 1.0, 4)
    assert manifest["complete"]


@pytest.mark.ray
def test_any_number_of_workers_makes_the_same_codes(
    random_order: Run, tmp_path: Path, ray_home: Path
) -> None:
    options = {"keep": 9, "steps": 4}
    sample_images(job(random_order, tmp_path / "one", **options), progress=False)
    for workers in (2, 3):
        sample_images(job(random_order, tmp_path / str(workers), **options), workers=workers, progress=False)
        for name, array in codes(tmp_path / "one").items():
            assert np.array_equal(array, codes(tmp_path / str(workers))[name]), (name, workers)


def test_an_interrupted_job_samples_only_what_is_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_images(job(run, tmp_path / "whole"), progress=False)
    done: list[int] = []
    answer = SamplingWorker.answer

    def counting(self: SamplingWorker, batch: int) -> Any:
        if len(done) == 2:
            raise RuntimeError("the machine went away")
        done.append(batch)
        return answer(self, batch)

    monkeypatch.setattr(SamplingWorker, "answer", counting)
    with pytest.raises(RuntimeError, match="went away"):
        sample_images(job(run, tmp_path / "parts"), progress=False)
    assert done == [0, 1]
    assert not json.loads((tmp_path / "parts" / "generation.json").read_text()).get("complete")
    done.clear()
    sample_images(job(run, tmp_path / "parts"), progress=False)
    assert done == [2, 3]
    assert np.array_equal(codes(tmp_path / "whole")["indices"], codes(tmp_path / "parts")["indices"])
    next((tmp_path / "parts" / "pictures").glob("000007-*.png")).unlink()
    done.clear()
    sample_images(job(run, tmp_path / "parts"), progress=False)
    assert done == [1], "a batch that lost an image is made again"


def test_another_job_in_the_same_directory_is_refused(run: Run, tmp_path: Path) -> None:
    sample_images(job(run, tmp_path / "out", num=4), progress=False)
    other = job(run, tmp_path / "out", num=4, seed=1, sampling=SamplingConfig(temperature=0.5))
    with pytest.raises(InputError, match=r"made otherwise \(sampling, seed differ\): name another --out"):
        sample_images(other, progress=False)


MISTAKES = {
    "a class out of range": (
        ["--classes", "12"],
        r"--classes 12: this generator knows classes 0 to 11 (disc, ring,",
    ),
    "an unknown class": (["--classes", "dog"], r"--classes dog: this generator knows classes"),
    "a kept count that was not trained": (
        ["--keep", "5"],
        r"--keep 5: this generator was trained at 4, 9, 16",
    ),
    "steps of a raster order": (
        ["--steps", "4"],
        r"--steps 4: a mergear generator makes one token after the other",
    ),
    "scales for other sub-tokens": (
        ["--cfg", "1", "2", "3"],
        r"guidance.scale has 3 values, the codes 2 sub-tokens",
    ),
    "a share above one": (["--top-p", "1.5"], r"--top-p 1.5: at most 1"),
    "a negative count": (["--top-k", "-1"], r"--top-k -1: at least 0"),
    "a negative scale": (["--cfg", "-1"], r"--cfg -1: at least 0"),
    "no number": (["--cfg", "1", "nan"], r"--cfg nan: a finite number"),
    "no images": (["--num", "0"], r"--num is 0"),
    "another tokenizer": (["--tokenizer", "OTHER"], r"its codes mean something else"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_made(
    mistake: str,
    run: Run,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import mergevq

    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    words, message = MISTAKES[mistake]
    if "OTHER" in words:
        torch.manual_seed(5)
        mergevq.save(mergevq.create("test_gr"), tmp_path / "other")
        words = ["--tokenizer", str(tmp_path / "other")]
    assert cli.run(["generate", run.name, "--out", str(tmp_path / "out"), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_more_steps_than_tokens_are_refused(random_order: Run) -> None:
    with pytest.raises(InputError, match=r"--steps 10: 9 tokens take 1 to 9 steps"):
        open_sampling(random_order.location, keep=9, steps=10)


def test_the_command_line_tokenizes_trains_data_and_generates(
    run: Run,
    home: Path,
    image_set: Path,
    tokenizer_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    out = str(tmp_path / "codes")
    assert (
        cli.run(
            [
                "tokenize",
                str(tokenizer_directory),
                out,
                "--data",
                str(image_set),
                "--keep",
                "{kind: uniform, counts: [4, 9]}",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "train: 384 views at 4, 9 kept tokens" in printed or "kept tokens" in printed
    assert (
        cli.run(
            [
                "generate",
                run.name,
                "--out",
                str(tmp_path / "made"),
                "--num",
                "3",
                "--cfg",
                "1.5",
                "2",
                "--temperature",
                "0",
            ]
        )
        == 0
    )
    manifest = json.loads((tmp_path / "made" / "generation.json").read_text())
    assert manifest["guidance"]["scale"] == [1.5, 2.0]
    assert manifest["sampling"]["temperature"] == 0.0
    assert cli.run(["tokenize", str(tokenizer_directory), out]) == 2
    assert "give --data and --keep" in capsys.readouterr().err


def test_a_tokenizer_with_another_source_recovery_paints_the_generators_codes(
    random_order: Run, home: Path, tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mergevq

    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    tokenizer, tuned = mergevq.load(tokenizer_directory), str(tmp_path / "tuned")
    tokenizer.recovery.embed.bias.data += 1.0
    mergevq.save(tokenizer, tuned)
    words = ["generate", random_order.name, "--num", "3"]
    assert cli.run([*words, "--out", str(tmp_path / "own")]) == 0
    assert cli.run([*words, "--out", str(tmp_path / "other"), "--tokenizer", tuned]) == 0
    own, other = (json.loads((tmp_path / name / "generation.json").read_text()) for name in ("own", "other"))
    assert np.array_equal(codes(tmp_path / "own")["indices"], codes(tmp_path / "other")["indices"])
    assert other["tokenizer"]["location"] == tuned
    assert other["tokenizer"]["sha256"] == checkpoints.sha256(Path(tuned, "model.safetensors"))
    assert other["tokenizer"]["sha256"] != own["tokenizer"]["sha256"]
    assert other["tokenizer"]["codes_sha256"] == own["tokenizer"]["codes_sha256"]


@pytest.mark.parametrize("part", ["decoder", "encoder.stem"])
def test_a_tokenizer_that_differs_in_more_than_source_recovery_is_refused(
    part: str, random_order: Run, tokenizer_directory: Path, tmp_path: Path
) -> None:
    import mergevq

    other = mergevq.load(tokenizer_directory)
    other.get_submodule(part).get_parameter("conv_in.weight").data.view(-1)[0] += 1.0
    mergevq.save(other, tmp_path)
    with pytest.raises(InputError, match=r"its codes mean something else.*Source Recovery alone may be"):
        open_sampling(random_order.location, tokenizer=str(tmp_path))


@pytest.mark.parametrize("kind", ["mergear", "random_order"])
def test_the_report_has_the_point_without_guidance_its_baselines_and_an_honest_name(
    kind: str, small_generator: dict[str, Any], home: Path
) -> None:
    name = {"mergear": "mergear", "random_order": "randar"}[kind]
    run = trained(name, kind, small_generator, home)
    evaluator = evaluator_of(run, scales=[2.0])
    report = evaluator.report("x")
    assert [row["scale"] for row in report.rows] == [1.0, 2.0]
    assert set(report.references) == {"real", "reconstructed", "by_position", "untrained"}
    keys = {"gfd_random_v1", "class_top1", "class_top1_low", "class_top1_high", "neighbour_ratio"}
    for row in [*report.rows, *report.references.values()]:
        assert keys <= row.keys()
        assert not any("fid" in key for key in row), "no Inception measured this"
    assert report.references["real"]["gfd_random_v1"] == pytest.approx(0, abs=1e-6)
    assert report.protocol["chance_top1"] == pytest.approx(100 / 12, abs=2)
    assert report.protocol["tokenizer"]["sha256"] == evaluator.spec.tokenizer.sha256
    assert len(evaluator.findings.shown["1"].labels) == 48
    assert any(sentence.startswith("NO") for sentence in report.verdict()), (
        "eight steps learn nothing, and it says so"
    )


@pytest.mark.slow
@pytest.mark.ray
def test_one_and_two_workers_evaluate_alike(run: Run, ray_home: Path) -> None:
    alone = evaluator_of(run, scales=[1.0]).report("x")
    shared = evaluator_of(run, scales=[1.0], workers=2).report("x")
    for name, row in alone.references.items():
        for key in ("gfd_random_v1", "class_top1", "neighbour_ratio"):
            assert shared.references[name][key] == pytest.approx(row[key], rel=1e-6, abs=1e-9)
    assert shared.rows[0]["gfd_random_v1"] == pytest.approx(alone.rows[0]["gfd_random_v1"], rel=1e-6)


def test_codes_by_position_have_the_training_codes_frequencies(run: Run) -> None:
    worker = GeneratorWorker(open_sampling(run.location))
    baseline = worker.position_baseline
    drawn = baseline.codes(torch.arange(4000), 0, None).numpy()
    stored = baseline.indices
    for position in (0, 7, 15):
        expected = np.bincount(stored[:, position], minlength=64) / len(stored)
        found = np.bincount(drawn[:, position], minlength=64) / len(drawn)
        assert np.abs(expected - found).sum() < 0.1
    assert np.array_equal(drawn[5], baseline.codes(torch.tensor([5]), 0, None).numpy()[0])


def test_evaluating_a_generator_records_its_curve_over_scales_once(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    for attempt in range(2):
        words = [
            "evaluate",
            run.name,
            "--cfg",
            "1.5",
            "--num",
            "24",
            "--out",
            str(tmp_path / str(attempt)),
        ]
        assert cli.run(words) == 0
    printed = capsys.readouterr().out
    assert "guidance scale 1.5" in printed
    names = {path.name for path in (tmp_path / "0").iterdir()}
    drawn = {"guidance.png", "guidance_narrow.png", "samples.png", "neighbours.png", "images"}
    assert names == {"report.json", "table.md", *drawn}
    report = GeneratorReport.load(tmp_path / "0" / "report.json")
    assert report.protocol["images"] == 24

    store = Store.at(home)
    client = store.client()
    experiment = client.get_experiment_by_name("mergevq")
    found = client.search_runs([experiment.experiment_id], "tags.`mergevq.uid` != ''")
    with_curve = [entry for entry in found if "cfg_curve/gfd_random_v1" in entry.data.metrics]
    assert len(with_curve) == 2, "the training's run, and a linked one for the second evaluation"
    for entry in with_curve:
        history = client.get_metric_history(entry.info.run_id, "cfg_curve/gfd_random_v1")
        assert sorted(point.step for point in history) == [100, 150]
        images = [Path(file.path).name for file in client.list_artifacts(entry.info.run_id, "images")]
        assert {name.partition("+timestamp")[0] for name in images} == {
            "samples+step+100",
            "samples+step+150",
        }
        assert "100 times the guidance scale" in entry.data.tags["mlflow.note.content"]
        tags = {key for key in entry.data.tags if key.startswith("protocol.")}
        assert tags == {"protocol.frechet_key", "protocol.id"}


def test_a_tokenizer_is_not_asked_for_guidance(
    tokenizer_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["evaluate", str(tokenizer_directory), "--cfg", "2"]) == 2
    assert "--cfg and --num are for generators, as is --tokenizer" in capsys.readouterr().err


def test_a_tokenizers_run_generates_nothing(
    small_recipe: dict[str, Any],
    tokenizer_directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run").mkdir()
    loop.train(resolve(small_recipe | {"steps": 1}), loop.Worker(), LocalHost(tmp_path / "run"))
    with pytest.raises(InputError, match="trains a tokenizer; this needs a generator"):
        open_sampling(str(tmp_path / "run"))
    for place, kind in ((str(tmp_path / "run"), "tokenizer run"), (str(tokenizer_directory), "tokenizer")):
        assert cli.run(["generate", place, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert f"{place} is a {kind}, which generates no images: give a run of a generator" in said
    assert not (tmp_path / "out").exists()


def test_a_generators_run_encodes_no_images(
    run: Run,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    out = str(tmp_path / "out")
    for words in (
        ["reconstruct", run.name, str(tmp_path / "image.png"), "--out", out],
        ["tokenize", run.name, out],
    ):
        assert cli.run(words) == 2
        said = capsys.readouterr().err
        assert (
            f"{run.name} is a generator run, which encodes no images: give a run of a tokenizer (kind" in said
        )
    assert not Path(out).exists()


def test_the_stored_recipe_says_how_it_is_sampled(run: Run) -> None:
    tree = yaml.safe_load((run.directory / "recipe.yaml").read_text())
    assert tree["task"]["generation"]["scales"] == [1.0, 2.0]
