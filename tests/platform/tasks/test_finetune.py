"""Fine-tuning as a recipe of the ordinary loop: from a tokenizer on disk to a classifier with its top-1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mergevq
from mergevq.errors import InputError
from mergevq.layers import ResBlock
from mergevq.training.finetune import load_fine_tuned
from mergevq_platform import loop
from mergevq_platform.data import ViewsConfig, make_views
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation import api
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.recipe import resolve
from mergevq_platform.storage.runs import Run
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tasks.task import task_of
from mergevq_platform.tracking.listing import find_run
from mergevq_platform.tracking.store import Store


@pytest.fixture
def tree(small_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    mergevq.save(mergevq.create("test_gr"), tmp_path / "tokenizer")
    return small_recipe | {
        "name": "tuned",
        "task": {
            "kind": "finetune",
            "tokenizer": str(tmp_path / "tokenizer"),
            "settings": {"layer_decay": 0.8},
        },
        "data": {
            "path": small_recipe["data"]["path"],
            "views": {"image_size": 16, "image_flip": 0.5, "image_scale": [0.5, 1.0]},
        },
        "evaluation": {"batch": 24, "every": 4},
        "steps": 4,
        "checkpoint_every": 4,
    }


def test_fine_tuning_moves_the_encoder_and_its_top1_is_measured(tree: dict[str, Any], tmp_path: Path) -> None:
    recipe, home = resolve(tree), tmp_path / "home"
    run = Run("tuned", home, str(home / "ray"))
    run.directory.mkdir(parents=True)
    host = LocalHost(run.directory)
    loop.train(recipe, loop.Worker(), host)
    assert any("val/accuracy" in values for _, values in host.history)
    tuned = load_fine_tuned(run.newest_checkpoint())
    before = mergevq.load(tmp_path / "tokenizer").encoder.state_dict()
    moved = [
        name for name, value in tuned.encoder.state_dict().items() if not torch.equal(value, before[name])
    ]
    assert len(moved) > 10
    (found,) = (
        task_of(recipe)
        .evaluator(recipe, run.newest_checkpoint(), EvaluationOptions(device="cpu"))
        .report("x")
        .rows
    )
    assert 0 <= found["top1_low"] <= found["top1"] <= found["top1_high"] <= 100
    assert found["top1"] * 64 / 100 == pytest.approx(round(found["top1"] * 64 / 100)), (
        "of 64 images, the last batch too"
    )


@pytest.mark.parametrize("wanted", [True, False])
def test_the_encoder_that_is_tuned_computes_again_where_the_recipe_says_so(
    tree: dict[str, Any], wanted: bool
) -> None:
    recipe = resolve(tree | {"recompute": wanted})
    training = loop.build(recipe, task_of(recipe).open_data(recipe))
    blocks = [module for module in training.modules() if isinstance(module, ResBlock)]
    assert blocks
    assert all(block.recompute is wanted for block in blocks)


@pytest.mark.long
def test_ray_train_runs_it_and_records_its_top1(tree: dict[str, Any], ray_home: Path) -> None:
    from mergevq_platform.distributed import trainer

    tree["cluster"] = {"device": "cpu", "workers": 2}
    trainer.train(resolve(tree), home=ray_home, name="tuned-on-ray", after=api.after_training)
    metrics = find_run(Store.at(ray_home), "tuned-on-ray").metrics
    assert metrics["test/top1_low"] <= metrics["test/top1"] <= metrics["test/top1_high"]
    assert "train/accuracy" in metrics


def test_what_cannot_be_fine_tuned_is_said(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["data"]["views"]["image_size"] = 32
    with pytest.raises(InputError, match=r"data\.views\.image_size is 32 but .*tokenizer works at 16"):
        preflight(resolve(tree))
    tree["task"]["tokenizer"] = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere"):
        preflight(resolve(tree))


def test_the_view_of_a_classifier_is_a_random_resized_crop_of_its_own_key() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
    views = ViewsConfig(image_size=16, image_flip=0.5, image_scale=(0.2, 1.0))

    def view(epoch: int, sample: int) -> np.ndarray:
        return make_views(pixels, views, seed=0, epoch=epoch, sample=sample)["image"]

    assert view(0, 0).shape == (16, 16, 3)
    assert np.array_equal(view(0, 0), view(0, 0))
    assert not np.array_equal(view(0, 0), view(1, 0))
    assert not np.array_equal(view(0, 0), view(0, 1))
    with pytest.raises(ValueError, match="image_scale is"):
        ViewsConfig(image_size=16, image_scale=(0.5, 1.5))
