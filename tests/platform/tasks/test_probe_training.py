"""Linear probes as a recipe of the ordinary loop: heads on augmented views, and the top-1 of the one that is chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mergevq
from mergevq.errors import InputError
from mergevq.training.probe import load_probe
from mergevq_platform import cli, loop
from mergevq_platform.data import EvalBatches, open_dataset, to_unit_range
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation import api
from mergevq_platform.evaluation.classifier import ClassifierWorker
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.recipe import resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tasks.task import task_of
from mergevq_platform.tracking.listing import find_run, list_runs
from mergevq_platform.tracking.store import Store


@pytest.fixture
def tree(small_recipe: dict[str, Any], tokenizer_directory: Path) -> dict[str, Any]:
    return small_recipe | {
        "name": "probe",
        "task": {
            "kind": "probe",
            "tokenizer": str(tokenizer_directory),
            "settings": {"feature": "mean", "keep": 9, "rate_factors": [1e-4, 1.0]},
        },
        "data": {
            "path": small_recipe["data"]["path"],
            "views": {"image_size": 16, "image_flip": 0.5, "image_scale": [0.5, 1.0]},
        },
        "optimizer": {"learning_rate": 0.05, "schedule": {"kind": "cosine"}},
        "evaluation": {"batch": 24, "every": 20},
        "ema_decay": 0.0,
        "steps": 40,
        "global_batch": 32,
        "micro_batch": 16,
        "checkpoint_every": 20,
    }


def test_heads_learn_on_a_frozen_tokenizer_and_the_better_one_answers(
    tree: dict[str, Any], tmp_path: Path, tokenizer_directory: Path
) -> None:
    recipe, home = resolve(tree), tmp_path / "home"
    run = Run("probe", home, str(home / "ray"))
    run.directory.mkdir(parents=True)
    host = LocalHost(run.directory)
    loop.train(recipe, loop.Worker(), host)
    named = [values for _, values in host.history]
    assert any({"val/accuracy_0", "val/accuracy_1"} <= values.keys() for values in named)
    losses = [values["train/head_1"] for values in named if "train/head_1" in values]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])

    report = (
        task_of(recipe)
        .evaluator(recipe, run.newest_checkpoint(), EvaluationOptions(device="cpu"))
        .report("x")
    )
    (found,) = report.rows
    assert found["head"] == 1, "the other's rate is a ten-thousandth"

    heads, settings = load_probe(run.newest_checkpoint())
    assert settings == recipe.task.settings
    tokenizer = mergevq.load(tokenizer_directory)
    right = images = 0
    dataset = open_dataset(recipe.data.path, "val")
    batches = EvalBatches(dataset, 16, 64)
    with torch.inference_mode():
        for index in range(batches.num_batches):
            batch = to_unit_range(batches.batch(index), torch.device("cpu"))
            features = tokenizer.encoder(batch["image"], 9).mean()
            right += int((heads(features)[1].argmax(1) == batch["label"]).sum())
            images += len(batch["label"])
    assert found["top1"] == pytest.approx(100 * right / images)
    assert found["top1_low"] <= found["top1"] <= found["top1_high"]


def test_a_stopped_probe_goes_on_bit_for_bit_and_its_checkpoint_holds_no_tokenizer(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    recipe = resolve(tree | {"steps": 4, "checkpoint_every": 4, "evaluation": {"batch": 24}})
    states = []
    for name, stops in (("whole", (None,)), ("parts", (2, None))):
        directory = tmp_path / name
        directory.mkdir()
        for stop in stops:
            loop.train(recipe, loop.Worker(), LocalHost(directory, stop_at=stop))
        states.append(load_probe(directory / "checkpoint_000000004")[0].state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert sum(value.numel() for value in states[0].values()) == 2 * (12 * 32 + 12) + 2 * 32


def test_the_tokenizer_of_a_probe_is_the_one_that_it_began_with(tree: dict[str, Any], tmp_path: Path) -> None:
    def tokenizer_at(step: int) -> Path:
        place = tmp_path / "tokenizer" / checkpoints.directory_name(step)
        stage_1 = resolve(stage_1_tree | {"steps": step, "checkpoint_every": step, "seed": step})
        loop.train(stage_1, loop.Worker(), LocalHost(place.parent))
        return place

    stage_1_tree = tree | {
        "task": {
            "preset": "test_gr",
            "keep": {"kind": "list", "counts": [9]},
            "losses": {"alignment": {"kind": "none"}, "adversarial": {"kind": "none"}},
        },
        "data": {"path": tree["data"]["path"], "views": {"image_size": 16}},
        "evaluation": {},
    }
    first = tokenizer_at(1)
    tree["task"]["tokenizer"] = str(tmp_path / "tokenizer")
    recipe = resolve(tree)
    assert recipe.task.tokenizer == str(first)
    assert recipe.task.tokenizer_sha256 == checkpoints.sha256(first / "model.safetensors")
    second = tokenizer_at(2)
    assert resolve(tree).task.tokenizer == str(second), "a run that begins now takes the newest"
    assert resolve(recipe) == recipe
    before = {name: value.clone() for name, value in mergevq.load(first).encoder.state_dict().items()}
    read = task_of(recipe).features(torch.device("cpu")).tokenizer.encoder.state_dict()
    assert all(torch.equal(read[name], value) for name, value in before.items())
    alone = tmp_path / "alone"
    mergevq.save(mergevq.load(first), alone)
    tree["task"]["tokenizer"] = str(alone)
    recipe = resolve(tree)
    torch.manual_seed(5)
    mergevq.save(mergevq.create("test_gr"), alone)
    with pytest.raises(InputError, match=r"task\.tokenizer: .* but the run began with"):
        task_of(recipe).features(torch.device("cpu"))


@pytest.mark.long
def test_ray_train_runs_it_and_records_its_top1(tree: dict[str, Any], ray_home: Path) -> None:
    from mergevq_platform.distributed import trainer

    tree["cluster"] = {"device": "cpu", "workers": 2}
    trainer.train(resolve(tree), home=ray_home, name="probe-on-ray", after=api.after_training)
    metrics = find_run(Store.at(ray_home), "probe-on-ray").metrics
    assert metrics["test/top1_low"] <= metrics["test/top1"] <= metrics["test/top1_high"]
    assert metrics["test/head"] == 1


def test_a_tokenizer_that_is_not_there_is_said(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["task"]["tokenizer"] = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        preflight(resolve(tree))


def test_a_probes_run_is_evaluated_by_its_name_and_only_once(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = resolve(tree | {"steps": 2, "checkpoint_every": 2})
    run = Run("heads", tmp_path, str(tmp_path / "ray"))
    run.directory.mkdir(parents=True)
    (run.directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(recipe))
    loop.train(recipe, loop.Worker(), LocalHost(run.directory))
    run.start(recipe, None).open().close("FINISHED")
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    answer = ClassifierWorker.answer

    def counting(self: ClassifierWorker, job: Any) -> Any:
        asked.append(job.split)
        return answer(self, job)

    monkeypatch.setattr(ClassifierWorker, "answer", counting)
    for attempt in range(2):
        words = ["evaluate", "heads", "--json", f"{attempt}.json", "--markdown", f"{attempt}.md"]
        assert cli.run([*words, "--out", f"out-{attempt}"]) == 0, capsys.readouterr().err
    assert len(asked) == len(range(0, 64, 24)) + len(range(0, 192, 24)), "every batch of both splits, once"
    assert Path("0.json").read_text() == Path("1.json").read_text()
    assert "top1" in Path("0.md").read_text()
    (row,) = json.loads(Path("0.json").read_text())["rows"]
    store = Store.at(tmp_path)
    own = find_run(store, "heads")
    assert own.metrics["test/top1"] == row["top1"]
    (again,) = [found for found in list_runs(store) if found.evaluates == own.uid]
    assert again.metrics["test/top1"] == row["top1"], "a linked run: never a second point at the same step"
