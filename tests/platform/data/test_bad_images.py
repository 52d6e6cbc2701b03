"""Images that cannot be decoded are counted over the whole run: every rank, every restart, each once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import undisturbed
from mergevq.errors import InputError
from mergevq.files import write_whole
from mergevq_platform import loop
from mergevq_platform.data.images.decoding import encode_png
from mergevq_platform.data.parquet.shards import ImageRecord, write_set
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.procedural.shape_distances import CLASSES
from mergevq_platform.procedural.shapes import render
from mergevq_platform.recipe import resolve
from mergevq_platform.storage import checkpoints

BAD = (3, 9, 10, 20, 27)


@pytest.fixture
def damaged(small_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """A recipe of one epoch, four steps, over 32 images of which five are half a file."""
    images, labels = render(np.arange(32), "train", 16)
    records = [
        ImageRecord(encode_png(image)[: 150 if row in BAD else None], f"{row}.png", int(label))
        for row, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    write_set(tmp_path / "set", {"train": records}, CLASSES, size=16, source={}, row_group_rows=8)
    small_recipe["data"] |= {"path": str(tmp_path / "set"), "bad_image_limit": len(BAD)}
    small_recipe["cluster"] = {"workers": 2, "min_workers": 1, "device": "cpu"}
    return small_recipe | {"steps": 4, "micro_batch": 4, "checkpoint_every": 2, "log_every": 1}


def alone(tree: dict[str, Any], directory: Path) -> LocalHost:
    directory.mkdir(exist_ok=True)
    host = LocalHost(directory)
    loop.train(resolve(tree), loop.Worker(), host)
    return host


def counts(host: LocalHost) -> list[float]:
    return [values["train/bad_pictures"] for _, values in host.history]


def test_the_ranks_counts_are_added(damaged: dict[str, Any], tmp_path: Path) -> None:
    one = counts(alone(damaged, tmp_path / "one"))
    two = undisturbed.train(damaged, tmp_path / "two", world_size=2)
    assert one[-1] == len(BAD)
    assert [two["journal"]["train/bad_pictures"][step] for step in range(1, 5)] == one
    assert two["state"]["bad_pictures"] == list(BAD)


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_limit_holds_for_all_ranks_together(
    world_size: int, damaged: dict[str, Any], tmp_path: Path
) -> None:
    damaged["data"]["bad_image_limit"] = len(BAD) - 1
    with pytest.raises(Exception, match=r"5 bad images, more than data\.bad_image_limit 4.* row \d+ of "):
        undisturbed.train(damaged, tmp_path / "run", world_size=world_size)


def test_a_restart_counts_on(damaged: dict[str, Any], tmp_path: Path) -> None:
    whole = counts(alone(damaged, tmp_path / "whole"))
    parts = counts(alone(damaged | {"steps": 2}, tmp_path / "parts"))
    assert 0 < parts[-1] < len(BAD)
    assert parts + counts(alone(damaged, tmp_path / "parts")) == whole
    damaged["data"]["bad_image_limit"] = len(BAD) - 1
    alone(damaged | {"steps": 2}, tmp_path / "few")
    with pytest.raises(InputError, match=r"5 bad images"):
        alone(damaged, tmp_path / "few")


def test_a_checkpoint_of_before_they_were_counted_goes_on(damaged: dict[str, Any], tmp_path: Path) -> None:
    alone(damaged | {"steps": 2}, tmp_path / "run")
    (newest, *_) = checkpoints.listed(str(tmp_path / "run"))
    state = torch.load(Path(newest) / "resume.pt", weights_only=True)
    del state["bad_pictures"]
    torch.save(state, Path(newest) / "resume.pt")
    about = checkpoints.about(Path(newest))
    about["sha256"]["resume.pt"] = checkpoints.sha256(Path(newest) / "resume.pt")
    write_whole(Path(newest) / "checkpoint.json", json.dumps(about))
    assert counts(alone(damaged, tmp_path / "run"))[-1] > 0


def test_a_recipe_with_the_old_name_of_the_limit_goes_on(damaged: dict[str, Any], tmp_path: Path) -> None:
    recipe = resolve(damaged)
    damaged["data"]["bad_picture_limit"] = damaged["data"].pop("bad_image_limit")
    assert resolve(damaged) == recipe
    assert "bad_image_limit" in checkpoints.recipe_yaml(recipe)
    with pytest.raises(InputError, match=r"'data\.bad_image_limit' is -1"):
        resolve(damaged | {"data": damaged["data"] | {"bad_picture_limit": -1}})
