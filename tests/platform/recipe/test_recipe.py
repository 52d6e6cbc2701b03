"""Recipes: one way in, complete when resolved, and errors that name the key and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from mergevq.config import flattened, merged, to_tree, with_overrides
from mergevq.errors import InputError
from mergevq_platform import recipe as recipes


@pytest.mark.parametrize("name", sorted(recipes.packaged_recipes()))
def test_every_packaged_recipe_resolves_and_says_what_it_is(name: str) -> None:
    path = recipes.packaged_recipes()[name]
    text = path.read_text()
    assert text.startswith("#"), "a recipe's header says what to expect, on which machine, by which command"
    assert "Command:" in text
    assert "Hardware:" in text
    given = {
        "task.losses.perceptual.backbone": "vgg16.pth",
        "task.losses.perceptual.heads": "lpips.pth",
        "task.losses.alignment.weights": "dinov2.safetensors",
    }
    tree = recipes.read(path)
    paper = tree["task"].get("loss_preset")
    recipe = recipes.load(path, [f"{key}={value}" for key, value in given.items()] if paper else [])
    assert recipe.description


def test_a_resolved_recipe_resolves_to_itself(small_recipe: dict[str, Any]) -> None:
    recipe = recipes.resolve(small_recipe)
    again = recipes.resolve(yaml.safe_load(yaml.safe_dump(to_tree(recipe))))
    assert again == recipe
    assert recipe.micro_batch == 4
    assert recipe.data.views.student_size == 16, "the views that the losses need are filled in"


def test_the_preset_lies_under_what_the_recipe_says(small_recipe: dict[str, Any]) -> None:
    small_recipe["task"]["model"] = {"encoder": {"depth": 3}}
    recipe = recipes.resolve(small_recipe)
    assert recipe.tokenizer.model.encoder.depth == 3
    assert recipe.tokenizer.model.encoder.width == 32


def test_another_kind_replaces_a_variant_whole() -> None:
    base = {"quantizer": {"kind": "lfq", "bits": 18}}
    assert with_overrides(base, ["quantizer.kind=fsq"]) == {"quantizer": {"kind": "fsq"}}
    assert merged(base, {"quantizer": {"bits": 10}}) == {"quantizer": {"kind": "lfq", "bits": 10}}


def test_flattened_keys_are_dotted_paths(small_recipe: dict[str, Any]) -> None:
    flat = flattened(to_tree(recipes.resolve(small_recipe)))
    assert flat["optimizer.learning_rate"] == 1e-3
    assert flat["task.keep.counts"] == [4, 9, 16]


MISTAKES = {
    "an unknown key": ("optimiser.learning_rate=1", r"unknown key 'optimiser': did you mean 'optimizer'\?"),
    "an unknown nested key": ("optimizer.lr=1", r"unknown key 'optimizer\.lr': .*learning_rate"),
    "an unknown key of a variant": (
        "task.model.quantizer.levels=[2]",
        r"unknown key 'task\.model\.quantizer\.levels': .*bits",
    ),
    "a wrong type": ("global_batch=many", r"'global_batch' is 'many': .*integer"),
    "an impossible value": (
        "optimizer.learning_rate=-1",
        r"'optimizer\.learning_rate' is -1: .*greater than 0",
    ),
    "an unknown kind": (
        "task.model.quantizer.kind=vqvae",
        r"'task\.model\.quantizer\.kind' is 'vqvae': it must be one of 'lfq', 'fsq'",
    ),
    "an unknown device": ("cluster.device=tpu", r"'cluster\.device' is 'tpu': .*'auto', 'cpu' or 'cuda'"),
    "heads that do not divide": (
        "task.model.encoder.heads=5",
        r"task\.model\.encoder: width 32 is not a multiple of heads 5",
    ),
    "an unreachable kept count": (
        "task.keep.counts=[1]",
        r"task\.keep: cannot keep 1 of 16 tokens .*reachable counts are 4 to 16",
    ),
    "an unreachable evaluated count": ("evaluation.keeps=[99]", r"evaluation\.keeps: cannot keep 99 of 16"),
    "more workers than images in a batch": (
        "cluster.workers=9",
        r"cluster\.workers is 9 but global_batch is 8",
    ),
    "passes too small for the workers": (
        "cluster={workers: 8, min_workers: 1}",
        r"2 passes, too few images in each for 8 workers: raise micro_batch to 8",
    ),
    "more workers at least than at most": (
        "cluster.min_workers=2",
        r"cluster.min_workers is 2, more than cluster.workers 1",
    ),
    "both lengths": ("epochs=1", r"'steps' or 'epochs'"),
    "an unknown preset": ("task.preset=gr_512", r"no preset 'gr_512'.*gr_256_d64"),
    "an image size that differs": (
        "data.views.image_size=32",
        r"data\.views\.image_size is 32 but the tokenizer works at 16",
    ),
    "an override without a value": ("steps", r"override 'steps': write it as key\.path=value"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_key_and_the_fix(
    mistake: str, small_recipe: dict[str, Any]
) -> None:
    override, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message) as caught:
        recipes.resolve(with_overrides(small_recipe, [override]))
    assert "\n" not in str(caught.value)


def test_a_recipe_cannot_name_code(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(InputError, match="not YAML"):
        recipes.read(path)


def test_a_missing_recipe_lists_the_packaged_ones() -> None:
    with pytest.raises(InputError, match=r"no recipe 'nowhere': .*demo"):
        recipes.find("nowhere")


def test_a_file_that_is_no_recipe_says_so(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1\n")
    with pytest.raises(InputError, match=r"broken\.yaml is not YAML at line"):
        recipes.read(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="holds no recipe"):
        recipes.read(tmp_path / "list.yaml")


def test_relative_names_of_what_is_there_become_absolute_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "teacher").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = recipes.load("demo", ["data.path=images", "task.losses.alignment.directory=nowhere"])
    found = recipes.locate(recipe)
    assert found.data.path == str(tmp_path / "images")
    assert found.tokenizer.losses.alignment.directory == "nowhere"
    monkeypatch.chdir("/")
    recipe = recipes.load("demo", ["data.path=s3://bucket/x", "task.losses.alignment.directory=teacher"])
    assert recipes.locate(recipe).tokenizer.losses.alignment.directory == "teacher"
    found = recipes.locate(recipe, tmp_path)
    assert found.tokenizer.losses.alignment.directory == str(tmp_path / "teacher")
    assert found.data.path == "s3://bucket/x"
