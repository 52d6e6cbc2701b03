"""A recipe is resolved once: paths absolute, models and weights by their hashes; whoever gets it looks for nothing."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import typing
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mergevq.config import to_tree, with_overrides
from mergevq.errors import InputError
from mergevq.paths import PathKind
from mergevq_platform import loop, tasks
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.recipe import (
    Pins,
    Recipe,
    ResolvedRecipe,
    complete,
    locate,
    named_paths,
    parse_resolved,
    path_kind,
    resolve,
)
from mergevq_platform.recipe.paths import path_fields
from mergevq_platform.storage import checkpoints
from mergevq_platform.tasks.generator import GeneratorTask
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tasks.probe import ProbeTask
from mergevq_platform.tasks.task import Worker


@pytest.fixture
def probe(small_recipe: dict[str, Any], tokenizer_directory: Path) -> dict[str, Any]:
    return small_recipe | {
        "task": {"kind": "probe", "tokenizer": str(tokenizer_directory)},
        "steps": 2,
        "evaluation": {"batch": 16},
    }


def refuse(*_: Any, **__: Any) -> Any:
    pytest.fail("the driver has resolved the recipe: a worker looks for nothing")


@pytest.mark.parametrize("kind", ["probe", "generator"])
def test_a_worker_pins_and_locates_nothing(
    kind: str,
    probe: dict[str, Any],
    small_generator: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tree = probe if kind == "probe" else small_generator | {"steps": 2}
    sent = to_tree(resolve(tree))
    for cls in (ProbeTask, GeneratorTask):
        monkeypatch.setattr(cls, "pin", refuse)
    monkeypatch.setattr(importlib.import_module("mergevq_platform.recipe.resolve"), "locate", refuse)
    recipe = parse_resolved(sent)
    assert isinstance(recipe, ResolvedRecipe)
    assert loop.train(recipe, Worker(), LocalHost(tmp_path)) == 2
    with checkpoints.newest(str(tmp_path)) as directory:
        assert checkpoints.recipe_of(directory) == recipe


def test_the_tokenizer_of_a_recipe_need_not_be_there_for_it_to_be_read(
    probe: dict[str, Any], tokenizer_directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(tokenizer_directory, tmp_path / "tokenizer")
    recipe = resolve(with_overrides(probe, [f"task.tokenizer={tmp_path / 'tokenizer'}"]))
    shutil.rmtree(tmp_path / "tokenizer")
    assert parse_resolved(to_tree(recipe)) == recipe
    assert resolve(recipe) == recipe, "what is pinned is not looked for again"


def test_a_trial_takes_what_the_sweep_has_found(
    small_generator: dict[str, Any], codes: Path, tmp_path: Path
) -> None:
    shutil.copytree(codes, tmp_path / "codes")
    tree = with_overrides(small_generator, [f"task.codes={tmp_path / 'codes'}"])
    first = locate(complete(tree))
    base = resolve(first)
    pins = Pins.between(first, base)
    assert set(pins.found) == {"task.tokenizer", "task.tokenizer_sha256", "task.tokenizer_codes_sha256"}
    (tmp_path / "codes" / "manifest.json").unlink()
    trial = resolve(locate(complete(tree | {"seed": 1})), pins=[pins])
    assert dataclasses.replace(trial, seed=base.seed) == base
    other = with_overrides(tree, ["task.codes=/nowhere"])
    with pytest.raises(InputError, match="no code set at /nowhere"):
        resolve(locate(complete(other)), pins=[pins])


def test_files_of_weights_are_resolved_to_their_hashes(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    for name in ("inception.pth", "vgg16.pth", "lpips.pth"):
        (tmp_path / name).write_text(name)
    dino = tmp_path / "dino.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, dino)
    small_recipe["task"]["initial_weights"] = str(dino)
    small_recipe["evaluation"] |= {
        "extractor": {"kind": "inception", "weights": str(tmp_path / "inception.pth")},
        "lpips": {
            "backbone": str(tmp_path / "vgg16.pth"),
            "heads": str(tmp_path / "lpips.pth"),
            "heads_sha256": "0" * 64,
        },
    }
    recipe: Any = resolve(small_recipe)
    sha256 = {name: checkpoints.sha256(tmp_path / name) for name in ("inception.pth", "vgg16.pth", dino.name)}
    assert recipe.evaluation.extractor.sha256 == sha256["inception.pth"]
    assert recipe.evaluation.lpips.backbone_sha256 == sha256["vgg16.pth"]
    assert recipe.evaluation.lpips.heads_sha256 == "0" * 64, "what is given stays"
    assert recipe.tokenizer.initial_weights_sha256 == sha256[dino.name]
    safetensors.torch.save_file({"a": torch.ones(2)}, dino)
    with pytest.raises(InputError, match=r"dino\.safetensors.* has SHA-256"):
        loop.build(recipe, None)


def test_the_training_set_is_opened_once(
    small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = resolve(small_recipe)
    samples = preflight(recipe)
    monkeypatch.setattr("mergevq_platform.tasks.image_feed.open_dataset", refuse)
    assert preflight(recipe, samples=samples) is samples


def test_paths_are_known_by_their_type(small_generator: dict[str, Any]) -> None:
    found = {named.key: named.kind for named in named_paths(resolve(small_generator))}
    assert found == {
        "task.codes": PathKind.CODES,
        "task.tokenizer": PathKind.RUN,
        "data.path": PathKind.DATA,
    }


def configs(cls: Any) -> set[type]:
    """A configuration's class and those of all its parts."""
    found = {cls}
    for hint in typing.get_type_hints(cls).values():
        waiting = [hint]
        while waiting:
            part = waiting.pop()
            waiting += typing.get_args(part)
            if dataclasses.is_dataclass(part) and part not in found:
                found |= configs(part)
    return found


def test_every_text_that_names_a_place_has_the_type_of_one() -> None:
    words = ("path", "weights", "directory", "codes", "tokenizer", "generator", "backbone")
    named = set()
    for cls in configs(Recipe).union(*(configs(tasks.find(kind)) for kind in tasks.KINDS)):
        hints = typing.get_type_hints(cls)
        for name in (field.name for field in dataclasses.fields(cls)):
            if name.endswith(words) and str in (hints[name], *typing.get_args(hints[name])):
                named.add(name)
                assert name in path_fields(cls), f"{cls.__name__}.{name}"
    assert {"path", "codes", "tokenizer", "generator", "weights", "directory", "backbone"} <= named


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("data.path", PathKind.DATA),
        ("task.codes", PathKind.CODES),
        ("task.tokenizer", PathKind.RUN),
        ("task.initial_weights", PathKind.WEIGHTS),
        ("task.losses.perceptual.backbone", PathKind.WEIGHTS),
        ("evaluation.extractor.weights", PathKind.WEIGHTS),
        ("task.losses.alignment.directory", PathKind.EXPORT),
        ("name", None),
        ("task.model.window", None),
        ("task.tokenizer.tokenizer", None),
    ],
)
def test_the_kind_of_a_path_is_known_from_its_key_alone(key: str, kind: PathKind | None) -> None:
    assert path_kind(key) is kind
