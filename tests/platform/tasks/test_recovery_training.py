"""Fine-tuning Source Recovery as a recipe: a complete tokenizer comes out, and is used as one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mergevq
from mergevq.config import with_overrides
from mergevq.errors import InputError
from mergevq_platform import cli, loop
from mergevq_platform.data import open_dataset
from mergevq_platform.distributed import trainer
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation import api
from mergevq_platform.evaluation.spec import EvaluationSpec, keeps_to_measure
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.operations import planning
from mergevq_platform.recipe import Recipe, resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.storage.tokenizer_ref import sha256_of_codes
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tracking.records import read_metrics
from raynodes import same


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def train(recipe: Recipe, directory: Path, **options: Any) -> LocalHost:
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(recipe))
    host = LocalHost(directory, **options)
    loop.train(recipe, loop.Worker(), host)
    return host


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recovering")


@pytest.fixture
def home(place: Path, small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the runs `tokenizer`, of stage 1, and `generator`, of random order on its codes; made once."""
    monkeypatch.setenv("MERGEVQ_HOME", str(place))
    if (place / "ray").exists():
        return place
    train(resolve(small_recipe | {"steps": 2}), place / "ray" / "tokenizer")
    task = {"kind": "generator", "preset": "test_random_order", "model": {"classes": 12}}
    tree = small_recipe | {
        "name": "generator",
        "task": task | {"tokenizer": str(place / "ray" / "tokenizer"), "generation": {"keep": 9}},
        "data": {"path": small_recipe["data"]["path"], "views": {"image_size": 16}},
        "evaluation": {"batch": 16},
        "steps": 1,
    }
    train(resolve(tree), place / "ray" / "generator")
    return place


@pytest.fixture
def tree(small_recipe: dict[str, Any], home: Path) -> dict[str, Any]:
    return small_recipe | {
        "name": "recovery",
        "task": {
            "kind": "recovery",
            "tokenizer": str(home / "ray" / "tokenizer"),
            "generator": str(home / "ray" / "generator"),
            "settings": {"generated_fraction": 0.5},
        },
        "data": {"path": small_recipe["data"]["path"], "views": {"image_size": 16}},
        "optimizer": {
            "learning_rate": 1e-2,
            "betas": [0.9, 0.95],
            "weight_decay": 0.01,
            "schedule": {"kind": "constant"},
        },
        "ema_decay": 0.8,
        "evaluation": {"batch": 32, "every": 4, "validation_images": 64},
    }


def newest(directory: Path) -> Path:
    return Path(checkpoints.listed(str(directory))[0])


def test_a_complete_tokenizer_comes_out_of_which_only_recovery_has_learnt(
    tree: dict[str, Any], home: Path, image_set: Path, tmp_path: Path
) -> None:
    host = train(resolve(tree | {"steps": 40}), home / "ray" / "tuned")
    values = [values for _, values in host.history]
    first, *_, last = (row for row in values if "val/recovery_accuracy_4" in row)
    assert {f"val/recovery_accuracy_{keep}" for keep in (4, 9, 16)} <= last.keys()
    assert last["val/recovery_accuracy_9"] > first["val/recovery_accuracy_9"] + 10
    assert any(row.get("train/changed_fraction", 0) > 0 for row in values)

    checkpoint, start = newest(home / "ray" / "tuned"), newest(home / "ray" / "tokenizer")
    assert sha256_of_codes(checkpoint / "model.safetensors") == sha256_of_codes(start / "model.safetensors")
    tuned, before = mergevq.load(checkpoint).state_dict(), mergevq.load(start).state_dict()
    changed = {name for name, value in tuned.items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("recovery.")}

    recipe, stage_1 = checkpoints.recipe_of(checkpoint), checkpoints.recipe_of(start)
    assert recipe.task.tokenizer == str(start)
    assert recipe.tokenizer.losses == stage_1.tokenizer.losses, "what its tokenizer was trained by goes along"
    assert keeps_to_measure(recipe, [4, 9]) == (4, 9)

    out = tmp_path / "out"
    words = ["generate", "generator", "--num", "2", "--out", str(out), "--tokenizer", "tuned"]
    assert cli.run(words) == 0
    assert json.loads((out / "generation.json").read_text())["tokenizer"]["location"] == str(checkpoint)
    words = ["evaluate", "tuned", "--keep", "9", "--suite", "reconstruction", "--no-tracking"]
    assert cli.run([*words, "--json", str(out / "curve.json"), "--out", str(out)]) == 0
    (row,) = json.loads((out / "curve.json").read_text())["rows"]
    assert row["recovery_accuracy"] == pytest.approx(last["val/recovery_accuracy_9"], abs=1e-6)
    untrained = [
        TokenizerWorker(EvaluationSpec(None, of, str(image_set), "cpu")).untrained()
        for of in (recipe, stage_1)
    ]
    assert same(*(model.state_dict() for model in untrained)), "the baseline is from before stage 1"


def test_a_stopped_tuning_goes_on_bit_for_bit(tree: dict[str, Any], tmp_path: Path) -> None:
    recipe = resolve(tree | {"steps": 6, "checkpoint_every": 100})
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_at=3)
    train(recipe, tmp_path / "parts")
    whole, parts = (
        torch.load(newest(tmp_path / name) / "resume.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert same(whole, parts)


def test_what_a_run_begins_with_is_recorded_and_resolves_to_itself(tree: dict[str, Any], home: Path) -> None:
    recipe = resolve(tree)
    assert resolve(recipe) == recipe
    generator = newest(home / "ray" / "generator")
    assert recipe.task.generator == str(generator)
    assert recipe.task.generator_sha256 == checkpoints.sha256(generator / "model.safetensors")
    assert recipe.tokenizer.keep.candidates(16) == (4, 9, 16), "those that the generator knows"
    other = replace(recipe, task=replace(recipe.task, generator_sha256="0" * 64))
    with pytest.raises(InputError, match=r"task\.generator: .* has weights .* is recorded"):
        loop.build(other, open_dataset(recipe.data.path, "train"))  # as a run that goes on does
    alone = resolve(with_overrides(tree, ["task.generator=null", "task.keep={kind: list, counts: [9]}"]))
    assert alone.tokenizer.keep.candidates(16) == (9,)
    assert alone.task.draw_keep(alone.seed, 0) == 9


MISTAKES = {
    "no tokenizer there": ("task.tokenizer=/nowhere", r"/nowhere"),
    "a bare tokenizer without counts": (
        "task.generator=null task.tokenizer=BARE",
        r"is a tokenizer without a recipe: give task\.keep",
    ),
    "a generator of other codes": (
        "task.tokenizer=BARE",
        r"task\.generator: .* writes codes of another tokenizer: .*its codes mean something else",
    ),
    "a tokenizer as generator": (
        "task.generator=HOME/tokenizer",
        r"trains a tokenizer; this needs a generator",
    ),
    "a generator with other weights": (
        "task.generator_sha256=abc",
        r"task\.generator: .* has weights .* but abc… is recorded",
    ),
    "a count that the generator does not know": (
        "task.keep.kind=list task.keep.counts=[9,12]",
        r"task\.keep: the generator at .* was not trained at 12 kept tokens: leave task\.keep out",
    ),
    "a count that the layers cannot reach": (
        "task.generator=null task.keep.kind=list task.keep.counts=[3]",
        r"task\.keep: ",
    ),
    "another image size": ("data.views.image_size=32", r"data\.views\.image_size is 32 .* works at 16"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_before_training_with_its_fix(
    mistake: str, tree: dict[str, Any], home: Path, tokenizer_directory: Path
) -> None:
    override, message = MISTAKES[mistake]
    override = override.replace("BARE", str(tokenizer_directory)).replace("HOME", str(home / "ray"))
    with pytest.raises(InputError, match=message) as caught:
        preflight(resolve(with_overrides(tree, override.split())))
    assert "\n" not in str(caught.value)


@pytest.mark.long
def test_ray_train_runs_it_and_mlflow_shows_recovery_before_and_after(
    tree: dict[str, Any], ray_home: Path
) -> None:
    tree["cluster"] = {"device": "cpu", "workers": 2}
    tree |= {"steps": 40, "evaluation": tree["evaluation"] | {"batch": 16}}
    outcome = trainer.train(resolve(tree), home=ray_home, name="recovery-on-ray", after=api.after_training)
    assert isinstance(outcome.run, Run)
    history = read_metrics(outcome.run.directory / "journal.jsonl")
    assert sorted(history["train/total"]) == list(range(1, 41))
    before, after = history["curve_details/recovery_accuracy_before"], history["curve/recovery_accuracy"]
    assert sorted(before) == sorted(after) == [4, 9, 16]
    assert after[9] > before[9] + 5
    curve = json.loads((outcome.run.directory / "curve" / "curve.json").read_text())
    assert curve["protocol"]["before"]["weights_sha256"] != curve["protocol"]["weights_sha256"]


def test_the_plan_measures_what_builds_on_a_tokenizer(tree: dict[str, Any], home: Path) -> None:
    recovery = mergevq.load(newest(home / "ray" / "tokenizer")).recovery
    assert recovery is not None
    sizes = planning.measure(resolve(tree), device=torch.device("cpu"), repeats=1)
    assert sizes.gradient_bytes == sum(p.numel() * 4 for p in recovery.parameters())
    with checkpoints.newest(str(home / "ray" / "generator")) as directory:
        encoding = checkpoints.recipe_of(directory)
    sizes = planning.measure(encoding, device=torch.device("cpu"), repeats=1)
    assert sizes.input_seconds > 0  # it encodes images as they come
    codes = replace(encoding.generator, codes="/not/made")
    alone = planning.measure(replace(encoding, task=codes), device=torch.device("cpu"), repeats=1)
    tokenizer = sum(
        t.numel() * t.element_size()
        for t in mergevq.load(newest(home / "ray" / "tokenizer")).state_dict().values()
    )
    assert sizes.state_bytes - alone.state_bytes == pytest.approx(tokenizer, rel=0.01)
    assert sizes.flops > alone.flops
