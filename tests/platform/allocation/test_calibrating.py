"""Allocators on the platform: calibrated on the training split, the same on any number of workers and in any batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mergevq
from mergevq.allocation import Calibration
from mergevq.errors import InputError
from mergevq_platform.allocation.calibrating import CalibratedAllocator, calibrate_allocators
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.recipe import ResolvedRecipe, resolve
from mergevq_platform.storage import checkpoints

NAMES = ("similarity", "compressed_size", "oracle")


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> ResolvedRecipe:
    """Calibrates on 90 images in batches of 24, of which the last is partial."""
    small_recipe["evaluation"] |= {"batch": 24, "probe_images": 90}
    return resolve(small_recipe)


def calibrated(
    tokenizer: Path, recipe: ResolvedRecipe, *names: str, workers: int = 0, cache: Cache | None = None
) -> list[CalibratedAllocator]:
    options = EvaluationOptions(device="cpu", workers=workers, cache=cache)
    return calibrate_allocators(str(tokenizer), recipe, names or NAMES, [5, 7], options, menu=range(4, 17))


def test_the_mean_on_the_training_split_is_near_the_wanted_one(
    tokenizer_directory: Path, recipe: ResolvedRecipe
) -> None:
    for found in calibrated(tokenizer_directory, recipe):
        assert found.calibration.images == 90
        assert found.calibration.split == "train"
        assert found.calibration.menu == tuple(range(4, 17))
        assert found.calibration.tokenizer_sha256 == checkpoints.sha256(
            tokenizer_directory / "model.safetensors"
        )
        for known in found.calibration.budgets:
            assert known.reached == pytest.approx(known.budget, abs=0.2)


def test_any_batch_size_finds_the_same_constants(tokenizer_directory: Path, recipe: ResolvedRecipe) -> None:
    other = replace(recipe, evaluation=replace(recipe.evaluation, batch=7))
    assert calibrated(tokenizer_directory, recipe) == calibrated(tokenizer_directory, other)


@pytest.mark.ray
def test_any_number_of_workers_finds_the_same_constants(
    tokenizer_directory: Path, recipe: ResolvedRecipe, ray_home: Path
) -> None:
    alone = calibrated(tokenizer_directory, recipe)
    assert calibrated(tokenizer_directory, recipe, workers=3) == alone


def test_scores_are_computed_once_and_kept_by_the_cache(
    tokenizer_directory: Path, recipe: ResolvedRecipe, tmp_path: Path
) -> None:
    cache = Cache.at(tmp_path)
    first = calibrated(tokenizer_directory, recipe, "oracle", cache=cache)
    files = {path: path.read_bytes() for path in cache.directory.iterdir()}
    assert [path.name.split("-")[0] for path in files] == ["allocation"]
    assert calibrated(tokenizer_directory, recipe, "oracle", cache=cache) == first
    assert {path: path.read_bytes() for path in cache.directory.iterdir()} == files


def test_a_calibrated_allocator_gives_every_image_its_own_count(
    tokenizer_directory: Path, recipe: ResolvedRecipe, tmp_path: Path
) -> None:
    (oracle,) = calibrated(tokenizer_directory, recipe, "oracle")
    tokenizer = mergevq.load(tokenizer_directory)
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        counts = oracle.counts(tokenizer, images, 7)
        assert set(counts.tolist()) <= set(range(4, 17))
        assert tokenizer.encode(images, keep=counts).counts.equal(counts)
        with pytest.raises(InputError, match="not calibrated for a mean of 9"):
            oracle.counts(tokenizer, images, 9)
    assert Calibration.read(oracle.write(tmp_path)) == oracle.calibration


@pytest.mark.parametrize(
    ("names", "budgets", "words"),
    [
        (["luck"], [9], "no allocator 'luck': give fixed, similarity, compressed_size, oracle"),
        (["oracle"], [17], "a mean of 17 kept tokens lies outside the menu, 4 to 16"),
        (["fixed"], [10], "keeps one count for all images, and 10 is none of its menu: nearest are 9, 16"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    tokenizer_directory: Path, recipe: ResolvedRecipe, names: list[str], budgets: list[float], words: str
) -> None:
    options = EvaluationOptions(device="cpu")
    with pytest.raises(InputError, match=words) as caught:
        calibrate_allocators(str(tokenizer_directory), recipe, names, budgets, options)
    assert "\n" not in str(caught.value)
