"""A second set, of real images in the modes that real sets have, from the folder to the curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergevq_platform import data, loop
from mergevq_platform.data.parquet.directory import read_manifest
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.recipe import resolve
from mergevq_platform.tasks.task import task_of
from textures import CLASSES, ICON, TRAIN, VAL, write_textures


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("textures") / "textures"
    write_textures(root)
    return root


@pytest.fixture(scope="module")
def packed(folder: Path) -> Path:
    directory = folder.parent / "packed"
    data.pack(folder, directory, progress=False)
    return directory


def images_of(packed: Path, split: str, name: str) -> list[np.ndarray]:
    dataset = data.open_dataset(packed, split)
    rows = dataset.read(range(dataset.rows))
    return [np.asarray(dataset.image(row)) for row in rows if dataset.classes[row.label] == name]


def test_every_image_of_every_mode_is_packed_under_its_class(packed: Path) -> None:
    manifest = read_manifest(packed)
    assert manifest is not None
    names = sorted([*CLASSES, ICON])
    assert list(manifest.classes) == names
    for split, count in (("train", TRAIN), ("val", VAL)):
        dataset = data.open_dataset(packed, split)
        labels = [row.label for row in dataset.read(range(dataset.rows))]
        assert np.bincount(labels).tolist() == [count] * len(names)
        assert not manifest.splits[split].skipped


def test_deep_and_float_greys_look_as_their_photographs_do(packed: Path) -> None:
    for name in ("grass", "gravel", "moon"):
        pixels = np.stack(images_of(packed, "train", name))
        assert 40 < pixels.mean() < 215, name
        assert len(np.unique(pixels)) > 64, name


def test_icons_are_dark_on_white_and_not_black_on_black(packed: Path) -> None:
    for icon in images_of(packed, "val", ICON):
        assert icon.max() == 255
        assert icon.min() < 100
        corner = icon[0, 0].tolist()
        assert corner == [255, 255, 255]


def test_what_was_read_is_said(packed: Path) -> None:
    said = data.describe(packed)
    assert "10: brick (24), cat fur (24), coins (24)" in said
    assert "32 of 320 images with transparent pixels, on white" in said
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "PPM", "TIFF"):
        assert kind in said


def test_a_tokenizer_learns_from_it_and_is_judged_with_a_probe(
    packed: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["data"]["path"] = str(packed)
    small_recipe["evaluation"] |= {"batch": 32}
    recipe = resolve(small_recipe | {"steps": 40, "checkpoint_every": 40, "log_every": 1})
    host = LocalHost(tmp_path / "run")
    host.directory.mkdir()
    loop.train(recipe, loop.Worker(), host)
    first, last = (
        np.mean([row["train/reconstruction"] for _, row in part if "train/reconstruction" in row])
        for part in (host.history[:8], host.history[-8:])
    )
    assert last < first

    checkpoint = str(next(host.directory.glob("checkpoint_*")))
    curve = (
        task_of(recipe)
        .evaluator(recipe, checkpoint, EvaluationOptions(device="cpu", step=40, keeps=(4, 9, 16)))
        .report("textures")
    )
    assert [row["keep"] for row in curve.rows] == [4, 9, 16]
    for row in curve.rows:
        assert row["majority_top1"] == pytest.approx(10.0)
        assert row["probe_top1_mean"] > 20, "ten textures differ by colour and contrast alone"
        assert np.isfinite(row["psnr"])
    assert curve.protocol["background"] == "white"
