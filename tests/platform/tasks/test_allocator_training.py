"""A learned allocator: measured once, trained on any number of ranks and after a resume alike, bound to its tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import mergevq
from mergevq.allocation import LearnedAllocator, LearnedAllocatorConfig, distortions, grid_tokens
from mergevq.allocation.learned import pooled
from mergevq.errors import InputError
from mergevq_platform import loop
from mergevq_platform.allocation.allocator_ref import find_allocator, with_places
from mergevq_platform.allocation.calibrating import calibrate_allocators
from mergevq_platform.allocation.measured import MeasuredImages, measure_split
from mergevq_platform.allocation.measured_stream import MeasuredStream
from mergevq_platform.data import BatchPartition
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.distributed.training_progress import TrainingProgress
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.spec import EvaluationSpec, split_batches
from mergevq_platform.operations import planning
from mergevq_platform.recipe import ResolvedRecipe, resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.tasks.task import task_of
from ranks import run as ranks_run

MENU = (4, 6, 9, 12, 16)


@pytest.fixture
def tree(image_set: Path, tokenizer_directory: Path) -> dict[str, Any]:
    return {
        "name": "choosing",
        "task": {
            "kind": "allocator",
            "tokenizer": str(tokenizer_directory),
            "menu": [16, 9, 6, 4, 12],
            "model": {"hidden": 2},
        },
        "data": {"path": str(image_set), "views": {"image_size": 16}},
        "steps": 6,
        "global_batch": 32,
        "log_every": 1,
        "checkpoint_every": 3,
        "optimizer": {"learning_rate": 0.01, "schedule": {"kind": "constant"}},
        "ema_decay": 0.0,
        "evaluation": {"batch": 24, "every": 3, "validation_images": 32, "probe_images": 90},
        "cluster": {"device": "cpu"},
    }


@pytest.fixture
def recipe(tree: dict[str, Any]) -> ResolvedRecipe:
    return resolve(tree)


def trained(recipe: ResolvedRecipe, place: Path, cache: Path | None = None) -> Path:
    loop.train(recipe, loop.Worker(cache=cache), LocalHost(place))
    return place


def measured(recipe: ResolvedRecipe, cache: Path | None = None) -> MeasuredImages:
    spec = EvaluationSpec(recipe.task.tokenizer, recipe, recipe.data.path, "cpu")
    return measure_split(spec, "train", MENU, cache)


def test_a_run_leaves_an_allocator_that_names_its_tokenizer(
    recipe: ResolvedRecipe, tokenizer_directory: Path, tmp_path: Path
) -> None:
    assert recipe.task.menu == MENU
    sha256 = checkpoints.sha256(tokenizer_directory / "model.safetensors")
    assert recipe.task.tags() == {"mergevq.tokenizer": sha256}
    run = trained(recipe, tmp_path / "choosing")
    with checkpoints.newest(str(run)) as directory:
        allocator = mergevq.load_allocator(directory, tokenizer_sha256=sha256)
        assert allocator.menu == MENU
        assert allocator.tokenizer_sha256 == sha256
        assert (directory / "model.safetensors").stat().st_size < 20_000
        with pytest.raises(InputError, match="was trained for a tokenizer of weights"):
            mergevq.load_allocator(directory, tokenizer_sha256="0" * 64)


def test_images_are_measured_as_they_are_evaluated(recipe: ResolvedRecipe, tokenizer_directory: Path) -> None:
    found = measured(recipe)
    assert found.features.shape == (90, 96)
    assert found.distortions.shape == (90, 5)
    tokenizer = mergevq.load(tokenizer_directory)
    batch = split_batches(recipe, recipe.data.path, "train").batch(1)
    images = batch["image"].float() / 127.5 - 1
    with torch.inference_mode():
        np.testing.assert_array_equal(found.distortions[24:48], distortions(tokenizer, images, MENU))
        expected = pooled(grid_tokens(tokenizer, images, MENU))
    np.testing.assert_allclose(found.features[24:48], expected, rtol=1e-5, atol=1e-6)


def test_what_is_measured_is_kept_by_the_cache(
    recipe: ResolvedRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(recipe, tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("mergevq_platform.allocation.measured.distortions", refuse)
    again = measured(recipe, tmp_path)
    np.testing.assert_array_equal(first.distortions, again.distortions)
    np.testing.assert_array_equal(first.features, again.features)


def test_who_waits_for_the_measurements_is_told_how_far_they_are(
    recipe: ResolvedRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int]] = []
    worker = loop.Worker(cache=tmp_path / "cache", measuring=lambda *numbers: told.append(numbers))
    loop.train(replace(recipe, steps=3), worker, LocalHost(tmp_path / "run"))
    splits = {split: [done for done, images in told if images == split] for split in (90, 64)}
    assert all(done == sorted(done) and done[-1] == images for images, done in splits.items())
    assert sum(map(len, splits.values())) == len(told)
    with TrainingProgress(recipe, "choosing") as progress:
        for done in (60, 90):
            progress.show({"step": 0.0, "measured": done, "images": 90}, [], stopping=False)
    shown = capsys.readouterr().err.splitlines()[1:]
    assert shown == ["measuring images, once: 60/90", "measuring images, once: 90/90"]


def test_the_images_of_a_step_do_not_depend_on_ranks_and_an_epoch_has_each_once() -> None:
    rows = np.arange(2100)
    images = MeasuredImages(rows[:, None].astype(np.float32), rows[:, None].astype(np.float64))
    partition = BatchPartition.of(60, 15, 2)

    def step(number: int, ranks: int) -> list[float]:
        streams = [
            MeasuredStream(images, partition=partition, seed=3, rank=rank, world_size=ranks)
            for rank in range(ranks)
        ]
        found = [batch["features"][:, 0] for stream in streams for batch in stream.step(number)]
        return sorted(torch.cat(found).tolist())

    assert [step(number, 1) for number in (0, 7, 40)] == [step(number, 2) for number in (0, 7, 40)]
    epoch = [row for number in range(35) for row in step(number, 1)]
    assert sorted(epoch) == list(range(2100))


def test_a_resumed_run_is_the_run_that_never_stopped(recipe: ResolvedRecipe, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole = trained(recipe, tmp_path / "whole", cache)
    trained(replace(recipe, steps=3), tmp_path / "parts", cache)
    parts = trained(recipe, tmp_path / "parts", cache)
    with checkpoints.newest(str(whole)) as one, checkpoints.newest(str(parts)) as other:
        assert checkpoints.about(one)["step"] == checkpoints.about(other)["step"] == 6
        first, second = mergevq.load_allocator(one), mergevq.load_allocator(other)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_learned_allocator_is_calibrated_by_the_name_of_its_run(
    recipe: ResolvedRecipe, small_recipe: dict[str, Any], tokenizer_directory: Path, tmp_path: Path
) -> None:
    run = trained(recipe, tmp_path / "choosing")
    small_recipe["evaluation"] |= {"batch": 24, "probe_images": 90}
    of_tokenizer = resolve(small_recipe)
    names = with_places(["oracle", "learned:choosing"], lambda name: str(tmp_path / name))
    assert names == ["oracle", f"learned:{run}"]
    ref = find_allocator(names[1], of_tokenizer.tokenizer)
    assert (ref.name, ref.menu) == ("learned:choosing", MENU)
    options = EvaluationOptions(device="cpu")
    (found,) = calibrate_allocators(str(tokenizer_directory), of_tokenizer, names[1:], [4], options)
    assert found.calibration.allocator_sha256 == ref.weights_sha256
    assert found.calibration.of(4).reached == 4

    other = tmp_path / "other"
    torch.manual_seed(9)
    mergevq.save(mergevq.create("test_gr"), other)
    with pytest.raises(InputError, match="learned:choosing was trained for a tokenizer of weights"):
        calibrate_allocators(str(other), of_tokenizer, names[1:], [4], options)
    with pytest.raises(InputError, match="chooses among 4, 6, 9, 12, 16, not among 4, 9"):
        find_allocator(names[1], of_tokenizer.tokenizer, menu=[4, 9])


def test_what_does_not_fit_is_said_before_the_first_step(tree: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"give task\.menu"):
        resolve(tree | {"task": tree["task"] | {"menu": None}})
    with pytest.raises(InputError, match="cannot keep 2 of 16 tokens"):
        resolve(tree | {"task": tree["task"] | {"menu": [2, 16]}})
    large = resolve(tree | {"task": tree["task"] | {"model": {"hidden": 64}}})
    with pytest.raises(InputError, match=r"hidden is 64: the head has .* more than 2% of the encoder's"):
        loop.build(large, task_of(large).open_data(large))
    other = resolve(tree | {"data": tree["data"] | {"views": {"image_size": 32}}})
    with pytest.raises(InputError, match="16"):
        loop.build(other, task_of(other).open_data(other))
    recipe = resolve(tree)
    with pytest.raises(InputError, match="--allocator learned:choosing"):
        task_of(recipe).evaluator(recipe, None, EvaluationOptions(device="cpu"))


def test_a_run_is_planned_without_measuring_an_image(recipe: ResolvedRecipe) -> None:
    step = planning.measure(recipe, device=torch.device("cpu"), repeats=1)
    assert step.input_seconds == 0
    assert step.checkpoint_bytes < 200_000


@pytest.mark.parametrize("ranks", [2])
def test_ranks_measure_their_shares_and_all_have_the_whole(
    recipe: ResolvedRecipe, tmp_path: Path, ranks: int
) -> None:
    small = replace(recipe, evaluation=replace(recipe.evaluation, batch=6))
    alone = measured(small)
    ranks_run(_measure_on_rank, (ranks, small, tmp_path), ranks)
    for rank in range(ranks):
        found = np.load(tmp_path / f"{rank}.npz")
        np.testing.assert_array_equal(found["distortions"], alone.distortions)
        np.testing.assert_array_equal(found["features"], alone.features)


def _measure_on_rank(rank: int, ranks: int, recipe: ResolvedRecipe, folder: Path) -> None:
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=ranks)
    found = measured(recipe)
    np.savez(folder / f"{rank}.npz", features=found.features, distortions=found.distortions)
    dist.destroy_process_group()


def test_the_head_reads_grid_tokens_of_its_own_width() -> None:
    allocator = LearnedAllocator(LearnedAllocatorConfig(hidden=2), MENU, width=8)
    tokenizer = mergevq.create("test_gr")
    with pytest.raises(InputError, match="of width 8, this tokenizer's have 32"):
        allocator.scores(tokenizer, torch.zeros(1, 3, 16, 16))
