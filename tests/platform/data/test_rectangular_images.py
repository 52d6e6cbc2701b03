"""Images that are no squares through the platform: trained on, evaluated, reconstructed, tokenized and generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mergevq
from mergevq.errors import InputError
from mergevq.merging import every_cell
from mergevq.metrics import to_uint8
from mergevq_platform import cli, loop
from mergevq_platform.codes import open_codes, tokenize
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.operations.planning.synthetic import micro_batches, with_images
from mergevq_platform.recipe import resolve
from mergevq_platform.sampling.pipeline import SamplingPipeline, open_sampling
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run
from mergevq_platform.storage.tokenizer_ref import find_tokenizer
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tracking.serving import ServedTokenizer


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("oblong")


@pytest.fixture
def run(small_recipe: dict[str, Any], home: Path) -> Run:
    """A tokenizer of images 48 pixels high and 64 wide, 6 rows of 8 cells, trained without Ray; made once."""
    run = Run("wide", home, str(home / "ray"))
    if not run.directory.exists():
        run.directory.mkdir(parents=True)
        small_recipe["task"] |= {
            "model": {
                "image_size": "48x64",
                "keep": 12,
                "encoder": {"stem_stride": 4},
                "decoder": {"head_stride": 4},
            },
            "keep": {"kind": "list", "counts": [12, 48]},
        }
        small_recipe["data"]["views"]["image_size"] = [48, 64]
        small_recipe["evaluation"] |= {
            "keeps": [12, 48],
            "images": 16,
            "probe_images": 32,
            "untrained_baseline": False,
        }
        recipe = resolve(small_recipe | {"steps": 2, "checkpoint_every": 2})
        preflight(recipe)
        (run.directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(recipe))
        loop.train(recipe, loop.Worker(), LocalHost(run.directory))
    return run


def test_a_tokenizer_of_48_x_64_is_evaluated_and_reconstructs(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    name = str(run.directory)
    assert cli.run(["evaluate", name, "--no-tracking", "--out", "evaluated"]) == 0, capsys.readouterr().err
    curve = json.loads((tmp_path / "evaluated" / "curve.json").read_text())
    assert [row["keep"] for row in curve["rows"]] == [12, 48]
    assert [row["merge_ratio"] for row in curve["rows"]] == [0.75, 0]
    for row in curve["rows"]:
        found = (
            row["rfd_random_v1"],
            row["rfd_random_v1_recovered"],
            row["psnr"],
            row["ssim"],
            row["probe_top1_cls"],
        )
        assert np.isfinite(found).all()
    assert curve["protocol"]["preprocessing"].startswith("resized to cover 48 x 64 (bicubic), centre crop")

    Image.new("RGB", (90, 70), "teal").save("photo.png")
    assert cli.run(["reconstruct", name, "photo.png", "--out", "own"]) == 0, capsys.readouterr().err
    assert (
        cli.run(["reconstruct", name, "photo.png", "--size", "64x32", "--out", "tall", "--html", "page.html"])
        == 0
    )
    page = Path("page.html").read_text()
    assert "64 × 32 px, 32 grid tokens" in page
    assert "8 of 32, 75% merged" in page
    # Three images beside each other, enlarged twice: 48 x 64 and 64 x 32 pixels.
    assert Image.open("own/reconstructions.png").size == (24 + 3 * (128 + 8) - 8, 30 + 96 + 12)
    assert Image.open("tall/reconstructions.png").size == (24 + 3 * (64 + 8) - 8, 30 + 128 + 12)
    capsys.readouterr()
    assert cli.run(["reconstruct", name, "photo.png", "--size", "60x64", "--out", "no"]) == 2
    assert "--size 60x64: images of 60 x 64 do not divide into cells of 8 pixels" in capsys.readouterr().err


def test_a_recipe_names_sizes_that_differ(small_recipe: dict[str, Any]) -> None:
    small_recipe["task"] |= {
        "model": {"image_size": [12, 16], "keep": 4},
        "keep": {"kind": "list", "counts": [4]},
    }
    small_recipe["evaluation"]["keeps"] = [4]
    with pytest.raises(InputError, match=r"data\.views\.image_size is 16 but the tokenizer works at 12 x 16"):
        resolve(small_recipe)
    small_recipe["data"]["views"]["image_size"] = "16x12"
    with pytest.raises(InputError, match="is 16 x 12 but the tokenizer works at 12 x 16"):
        resolve(small_recipe)


def test_planning_measures_images_of_the_recipes_shape(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["task"] |= {
        "model": {"image_size": [12, 16], "keep": 4},
        "keep": {"kind": "list", "counts": [4]},
    }
    small_recipe["data"]["views"]["image_size"] = [12, 16]
    small_recipe["evaluation"]["keeps"] = [4]
    recipe, images = with_images(resolve(small_recipe), tmp_path, 8)
    batch = micro_batches(recipe, images, 2, 4)[0]
    assert {batch[view].shape for view in ("image", "student", "teacher")} == {(2, 3, 12, 16)}


def test_a_registered_tokenizer_takes_and_gives_its_own_shape(tmp_path: Path) -> None:
    mergevq.save(mergevq.create("test_gr", image_size=(12, 16), keep=4), tmp_path)
    served = ServedTokenizer(tmp_path)
    images = np.zeros((2, 12, 16, 3), np.uint8)
    answer = served.predict(images, {"output": "all"})
    assert answer["reconstructions"].shape == images.shape
    assert answer["source"].shape == (2, 12)
    with pytest.raises(InputError, match=r"takes uint8 \(B, 12, 16, 3\)"):
        served.predict(images.swapaxes(1, 2))


@pytest.fixture(scope="module")
def codes(home: Path, image_set: Path) -> Path:
    """Codes of a tokenizer of 3 rows of 4 cells, at 4 and at all 12 kept tokens."""
    torch.manual_seed(0)
    mergevq.save(mergevq.create("test_gr", image_size=(12, 16), keep=4), home / "tokenizer")
    tokenizer = find_tokenizer(str(home / "tokenizer"))
    tokenize(tokenizer, home / "codes", data=str(image_set), keep=(4, 12), crops=1, progress=False)
    return home / "codes"


def test_a_code_set_knows_its_rows_and_columns_and_decodes_to_its_images(codes: Path) -> None:
    opened = open_codes(codes, "val")
    assert opened.manifest.tokenizer.image_size == (12, 16)
    assert opened.manifest.tokenizer.grid == (3, 4)
    tokenizer = opened.manifest.tokenizer.load()
    for keep in (4, 12):
        group = opened.group(opened.groups_of(keep)[0])
        indices, assignment = torch.from_numpy(group.indices[:4]), torch.from_numpy(group.assignment[:4])
        cells = indices.gather(1, assignment)
        with torch.inference_mode():
            images = tokenizer.decode_indices(cells, every_cell(cells, (3, 4)))
        assert images.shape == (4, 3, 12, 16)
        source = mergevq.Source(assignment, torch.ones(4, keep), (3, 4))
        with torch.inference_mode():
            assert torch.equal(tokenizer.decode_indices(indices, source), images)


@pytest.mark.parametrize("kind", ["raster", "mergear", "random_order"])
def test_generators_learn_and_make_images_of_the_tokenizers_shape(
    kind: str, small_generator: dict[str, Any], codes: Path, tmp_path: Path
) -> None:
    model = {"classes": 12, "grid_tokens": 12, "grid": [3, 4]} | (
        {} if kind == "raster" else {"keeps": [4, 12]}
    )
    keep = {"kind": "list", "counts": [4, 12]}
    small_generator["task"] |= {"preset": f"test_{kind}", "model": model, "keep": keep, "codes": str(codes)}
    small_generator["data"]["views"]["image_size"] = "12x16"
    recipe = resolve(small_generator | {"steps": 2, "checkpoint_every": 2})
    loop.train(recipe, loop.Worker(), LocalHost(tmp_path))
    pipeline = SamplingPipeline(open_sampling(str(tmp_path)))
    made = pipeline.decode(pipeline.codes(torch.arange(3), torch.arange(3)).indices)
    assert to_uint8(made).shape == (3, 3, 12, 16)

    def refused(said: str, **changed: Any) -> None:
        task = small_generator["task"] | {"model": model | changed}
        with pytest.raises(InputError, match=said):
            loop.train(resolve(small_generator | {"task": task}), loop.Worker(), LocalHost(tmp_path / "no"))

    refused(r"grid_tokens 12 is not a square number: give grid, the tokenizer's \[rows, columns\]", grid=None)
    refused(r"grid \[3, 5\] does not have the 12 cells", grid=[3, 5])
    refused(r"grid is 4 x 3, .* 3 rows of 4 cells: set task\.model\.grid=\[3,4\]", grid=[4, 3])
