"""Training generators through the loop: exact resume, the frozen tokenizer's hash, and errors that name the fix."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mergevq
from mergevq.config import with_overrides
from mergevq.errors import InputError
from mergevq_platform import loop
from mergevq_platform.codes import CodeSet
from mergevq_platform.distributed import trainer
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.recipe import Recipe, resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.storage.tokenizer_ref import sha256_of_codes
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tasks.task import task_of
from mergevq_platform.tracking.records import read_metrics
from raynodes import same


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def train(recipe: Recipe, directory: Path, **options: Any) -> LocalHost:
    directory.mkdir(exist_ok=True)
    host = LocalHost(directory, **options)
    loop.train(recipe, loop.Worker(), host)
    return host


def newest(directory: Path) -> Path:
    return Path(checkpoints.listed(str(directory))[0])


def resume_state(directory: Path) -> dict[str, Any]:
    return torch.load(newest(directory) / "resume.pt", weights_only=True)


@pytest.mark.parametrize("kind", ["raster", "mergear", "random_order"])
def test_a_stopped_and_resumed_generator_is_the_undisturbed_one_bit_for_bit(
    kind: str, small_generator: dict[str, Any], tmp_path: Path
) -> None:
    small_generator["task"]["preset"] = f"test_{kind}"
    recipe = resolve(small_generator | {"steps": 20, "checkpoint_every": 100})
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_at=10)
    assert newest(tmp_path / "parts").name.endswith("10")
    train(recipe, tmp_path / "parts")
    assert same(resume_state(tmp_path / "whole"), resume_state(tmp_path / "parts"))
    assert [step for step, _ in whole.history] == list(range(1, 21))


def test_a_validation_reads_no_codes_beyond_its_limit(
    small_generator: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_generator["evaluation"] |= {"validation_images": 1, "batch": 1}
    small_generator["data"]["evaluation_split"] = "train"
    recipe = resolve(small_generator)
    samples = task_of(recipe).open_data(recipe)
    feed = task_of(recipe).open_feed(recipe, samples, loop.Worker())
    read: list[int] = []
    group = CodeSet.group

    def counted(self: CodeSet, number: int) -> Any:
        read.append(number)
        return group(self, number)

    monkeypatch.setattr(CodeSet, "group", counted)
    feed.validate(loop.build(recipe, samples).model())
    keeps = recipe.task.kept_counts()
    assert any(len(samples.groups_of(keep)) > 1 for keep in keeps), "there is more to be read"
    assert len(read) == len(keeps)


def test_the_kept_counts_of_the_model_are_drawn_in_training(
    small_generator: dict[str, Any], tmp_path: Path
) -> None:
    host = train(resolve(small_generator | {"steps": 12}), tmp_path / "run")
    assert {values["train/kept_tokens"] for _, values in host.history} == {4, 9, 16}


def test_images_encoded_in_the_step_train_a_generator_without_a_code_set(
    small_generator: dict[str, Any], tokenizer_directory: Path, tmp_path: Path
) -> None:
    small_generator["evaluation"]["every"] = 2
    task = small_generator["task"]
    task.pop("codes")
    host = train(
        resolve(small_generator | {"steps": 2, "task": task | {"tokenizer": str(tokenizer_directory)}}),
        tmp_path / "run",
    )
    values = host.history[-1][1]
    assert values["val/token_loss"] == pytest.approx(6 * 0.6931, abs=0.05), "six bits, nothing learnt yet"


def test_validation_measures_the_loss_of_the_averaged_weights_at_every_count(
    small_generator: dict[str, Any], tmp_path: Path
) -> None:
    small_generator["optimizer"]["learning_rate"] = 5e-3
    small_generator["task"]["losses"] = {"label_smoothing": 0.0}
    small_generator["evaluation"]["every"] = 30
    tree = small_generator | {"steps": 60, "checkpoint_every": 60, "ema_decay": 0.5, "micro_batch": 8}
    host = train(resolve(tree), tmp_path / "run")
    losses = [values["val/token_loss"] for _, values in host.history if "val/token_loss" in values]
    assert len(losses) == 2
    assert losses[1] < losses[0] < 6 * 0.6932


def test_the_checkpoint_records_the_tokenizers_place_and_hash(
    small_generator: dict[str, Any], tokenizer_directory: Path, tmp_path: Path
) -> None:
    train(resolve(small_generator | {"steps": 1}), tmp_path / "run")
    task = checkpoints.recipe_of(newest(tmp_path / "run")).generator
    assert task.tokenizer == str(tokenizer_directory)
    assert task.tokenizer_sha256 == checkpoints.sha256(tokenizer_directory / "model.safetensors")
    assert task.tokenizer_codes_sha256 == sha256_of_codes(tokenizer_directory / "model.safetensors")


@pytest.mark.long
def test_two_ray_workers_resume_to_the_same_weights(small_generator: dict[str, Any], ray_home: Path) -> None:
    small_generator["cluster"] = {"workers": 2, "device": "cpu"}
    tree = small_generator | {"steps": 20, "checkpoint_every": 10}
    whole = trainer.train(resolve(tree), home=ray_home, name="generator-whole")
    half = trainer.train(resolve(tree | {"steps": 10}), home=ray_home, name="generator-parts")
    assert half.step == 10
    second = trainer.train(None, home=ray_home, resume="generator-parts", overrides=("steps=20",))
    assert second.step == 20

    def state(run: Run) -> Any:
        return torch.load(Path(run.newest_checkpoint()) / "resume.pt", weights_only=True)

    assert same(state(whole.run), state(second.run))
    history = read_metrics(second.run.directory / "journal.jsonl")
    assert sorted(history["train/total"]) == list(range(1, 21))


def other_tokenizer(directory: Path, preset: str = "test_gr", **fields: Any) -> str:
    torch.manual_seed(9)
    mergevq.save(mergevq.create(preset, **fields), directory)
    return str(directory)


def test_a_tokenizer_that_did_not_make_the_codes_is_refused(
    small_generator: dict[str, Any], tmp_path: Path
) -> None:
    tree = with_overrides(small_generator, [f"task.tokenizer={other_tokenizer(tmp_path / 'other')}"])
    with pytest.raises(InputError, match=r"task\.tokenizer: .*its codes mean something else"):
        resolve(tree)


def test_a_tokenizer_with_another_source_recovery_stands_for_the_maker_of_the_codes(
    small_generator: dict[str, Any], tokenizer_directory: Path, tmp_path: Path
) -> None:
    tokenizer = mergevq.load(tokenizer_directory)
    assert tokenizer.recovery is not None
    tokenizer.recovery.embed.bias.data += 1.0
    bias = next(weight for weight in tokenizer.encoder.parameters() if not weight.any())
    bias.data.neg_()  # of zeros: -0 is no other weight
    mergevq.save(tokenizer, tmp_path)
    recipe = resolve(with_overrides(small_generator, [f"task.tokenizer={tmp_path}"]))
    preflight(recipe)
    task = recipe.generator
    assert task.tokenizer_sha256 == checkpoints.sha256(tmp_path / "model.safetensors")
    assert task.tokenizer_codes_sha256 == sha256_of_codes(tokenizer_directory / "model.safetensors")


def test_codes_of_another_tokenizer_are_refused_on_resume(
    small_generator: dict[str, Any], image_set: Path, codes: Path, tmp_path: Path
) -> None:
    recipe = resolve(small_generator)
    shutil.copytree(codes, tmp_path / "codes")
    text = (tmp_path / "codes" / "manifest.json").read_text()
    sha256 = recipe.generator.tokenizer_sha256
    assert sha256 is not None
    (tmp_path / "codes" / "manifest.json").write_text(text.replace(sha256, "0" * 64))
    moved = resolve(
        with_overrides(
            small_generator, [f"task.codes={tmp_path / 'codes'}", f"task.tokenizer_sha256={sha256}"]
        )
    )
    with pytest.raises(InputError, match=r"task\.codes: .*its codes mean something else"):
        preflight(moved)


MISTAKES = {
    "a kept count that the model does not know": (
        "task.keep={kind: list, counts: [5]}",
        r"keep: 5 kept tokens are not among those that the model knows \(4, 9, 16\)",
    ),
    "a kept count to generate at that the model does not know": (
        "task.generation.keep=5",
        r"generation\.keep: 5 kept tokens are not among",
    ),
    "steps for a raster order": (
        "task.generation.steps=4",
        r"generation\.steps: a mergear generator makes one",
    ),
    "neither codes nor tokenizer": ("task.codes=null", r"give codes .*or a tokenizer"),
    "an unknown generator": ("task.preset=mergear_xxl", r"no generator 'mergear_xxl': .*mergear_l"),
    "bits that differ": (
        "task.model.bits=8",
        r"task\.model\.bits is 8 .*has 64 codes: set task\.model\.bits to 6",
    ),
    "a grid that differs": ("task.model.grid_tokens=25", r"task\.model\.grid_tokens is 25.*grid of 16"),
    "classes that differ": ("task.model.classes=3", r"task\.model\.classes is 3 but .* has 12 classes"),
    "counts that are not stored": (
        "task.model.keeps=[4, 10]",
        r"holds no codes at 10 kept tokens \(stored: 4, 9, 16\)",
    ),
    "no code set": ("task.codes=/nowhere", r"no code set at /nowhere: make it with `mergevq tokenize"),
    "another image size": ("data.views.image_size=32", r"data\.views\.image_size is 32.*works at 16"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_before_training_with_its_fix(
    mistake: str, small_generator: dict[str, Any]
) -> None:
    override, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message) as caught:
        preflight(resolve(with_overrides(small_generator, [override])))
    assert "\n" not in str(caught.value)


def test_more_steps_than_tokens_are_refused(small_generator: dict[str, Any]) -> None:
    small_generator["task"] |= {"preset": "test_random_order", "generation": {"keep": 9, "steps": 10}}
    with pytest.raises(InputError, match=r"generation\.steps is 10, more than the 9 tokens"):
        resolve(small_generator)
