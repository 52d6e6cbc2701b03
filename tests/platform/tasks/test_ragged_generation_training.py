"""Training generators on code sets whose images keep different counts: found by themselves, refused where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergevq.config import to_tree, with_overrides
from mergevq.errors import InputError
from mergevq.serialization import load_generator
from mergevq_platform import loop
from mergevq_platform.codes import open_codes
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.operations.planning.synthetic import kept_counts
from mergevq_platform.recipe import Recipe, complete, locate, resolve
from mergevq_platform.recipe.resolve import Pins
from mergevq_platform.storage import checkpoints
from mergevq_platform.tasks.preflight import preflight
from mergevq_platform.tasks.task import task_of
from raynodes import same


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def ragged(small_generator: dict[str, Any], ragged_codes: Path) -> dict[str, Any]:
    small_generator["task"]["codes"] = str(ragged_codes)
    return small_generator


def train(recipe: Recipe, directory: Path, **options: Any) -> LocalHost:
    directory.mkdir(exist_ok=True)
    host = LocalHost(directory, **options)
    loop.train(recipe, loop.Worker(), host)
    return host


def newest(directory: Path) -> Path:
    return Path(checkpoints.listed(str(directory))[0])


def test_the_codes_say_that_images_have_their_own_counts(ragged: dict[str, Any]) -> None:
    recipe = resolve(ragged)
    task = recipe.generator
    assert (task.budget, task.allocator, task.keep) == (10.0, "compressed_size", None)
    assert to_tree(task)["model"]["ragged"]
    assert task.kept_counts() == (4, 9, 16)
    assert task.tags()["mergevq.budget"] == "10"
    assert resolve(to_tree(recipe)) == recipe
    preflight(recipe)
    assert kept_counts(recipe) == (16, 16), "a micro-batch is as long as its longest image"


def test_a_trial_finds_out_too_with_what_is_pinned_of_its_sweep(ragged: dict[str, Any]) -> None:
    base = complete(ragged)
    pins = Pins.between(locate(base), resolve(base))
    trial = resolve(with_overrides(ragged, ["task.losses.label_smoothing=0"]), pins=[pins])
    assert (trial.generator.budget, trial.generator.keep) == (10.0, None)


@pytest.mark.parametrize("kind", ["mergear", "random_order"])
def test_a_stopped_and_resumed_run_is_the_undisturbed_one_and_carries_the_histogram(
    kind: str, ragged: dict[str, Any], tmp_path: Path
) -> None:
    ragged["task"]["preset"] = f"test_{kind}"
    ragged["evaluation"]["every"] = 6
    recipe = resolve(ragged | {"steps": 12, "checkpoint_every": 100})
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_at=6)
    train(recipe, tmp_path / "parts")
    states = [
        torch.load(newest(tmp_path / name) / "resume.pt", weights_only=True) for name in ("whole", "parts")
    ]
    assert same(*states)
    kept = [values["train/kept_tokens"] for _, values in whole.history if "train/kept_tokens" in values]
    assert len(kept) == 12
    assert all(4 <= mean <= 16 for mean in kept)
    assert len(set(kept)) > 1
    assert whole.history[-1][1]["val/token_loss"] < 6 * 0.6932
    generator = load_generator(newest(tmp_path / "whole"))
    found = open_codes(recipe.generator.codes or "", "train").histogram()
    assert generator.count_histogram.sum(0).tolist() == list(found.views)
    assert generator.count_histogram[3].tolist() == list(found.of_class[3])


def test_the_loss_of_a_step_does_not_depend_on_its_micro_batches(
    ragged: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ragged["task"] |= {"preset": "test_random_order"}
    ragged["task"]["model"] |= {
        "label_drop": 0.0,
        "transformer": {"dropout": 0.0, "token_dropout": 0.0},
    }
    # Orders come from global random numbers, which know micro-batches: here every image has the same.
    monkeypatch.setattr(
        torch, "rand", lambda shape, **_: (torch.arange(shape[-1]) * 7 % 17).expand(shape) / 17
    )
    losses = []
    for micro_batch in (8, 3):
        recipe = resolve(ragged | {"steps": 3, "micro_batch": micro_batch})
        host = train(recipe, tmp_path / str(micro_batch))
        losses.append([values["train/total"] for _, values in host.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_validation_reads_every_image_once_at_its_own_count(ragged: dict[str, Any]) -> None:
    ragged["task"]["preset"] = "test_random_order"
    ragged["evaluation"] |= {"validation_images": 64, "batch": 10}
    recipe = resolve(ragged)
    samples = task_of(recipe).open_data(recipe)
    feed = task_of(recipe).open_feed(recipe, samples, loop.Worker())
    batches = list(feed._validation_batches())
    counts = torch.cat([batch["count"] for batch in batches])
    assert len(counts) == 64
    assert sorted(counts.tolist()) == sorted(open_codes(samples.path, "val").group(0).keep.tolist())
    values = feed.validate(loop.build(recipe, samples).model())
    assert values["token_loss"] == pytest.approx(6 * 0.6931, abs=1e-3), (
        "six bits a token, none of what is padded"
    )


MISTAKES = {
    "raster": (
        "task.preset=test_raster",
        r"a raster generator makes all 16 cells .* train mergear or random_order",
    ),
    "counts that the model lacks": (
        "task.model.keeps=[4,9]",
        r"task\.model\.keeps is \[4, 9\], but the images of .* keep 4, 9, 16 tokens: set task\.model\.keeps=\[4,9,16\]",
    ),
    "one count": ("task.model.keeps=[16]", r"set task\.model\.keeps=\[4,9,16\]"),
    "another budget": ("task.budget=12", r"task\.budget is 12 but .* was made for 10"),
    "drawn counts": (
        "task.keep={kind: list, counts: [4]}",
        r"images .* have their own kept counts: leave keep out",
    ),
    "keep and budget": (
        "task.generation={keep: 4, budget: 8}",
        r"keep is 4, one count for all, and budget 8",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_fix(mistake: str, ragged: dict[str, Any]) -> None:
    override, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message) as caught:
        preflight(resolve(with_overrides(ragged, [override])))
    assert "\n" not in str(caught.value)


def test_a_budget_is_not_asked_of_codes_of_one_count(small_generator: dict[str, Any]) -> None:
    for override, named in (("task.budget=8", "budget 8"), ("task.generation.budget=8", "budget 8")):
        with pytest.raises(InputError, match=f"holds one kept count a row group, which has no {named}"):
            resolve(with_overrides(small_generator, [override]))


def test_a_run_goes_on_with_codes_of_its_kind_alone(
    ragged: dict[str, Any], codes: Path, small_generator: dict[str, Any]
) -> None:
    resolved = to_tree(resolve(ragged))
    with pytest.raises(InputError, match=r"holds one kept count a row group, but this run learns counts"):
        preflight(resolve(with_overrides(resolved, [f"task.codes={codes}"])))


def test_source_recovery_is_tuned_at_every_count_of_the_generators_codes(
    ragged: dict[str, Any], tokenizer_directory: Path, image_set: Path, tmp_path: Path
) -> None:
    ragged["task"]["preset"] = "test_random_order"
    train(resolve(ragged | {"steps": 1}), tmp_path / "generator")
    task = {
        "kind": "recovery",
        "tokenizer": str(tokenizer_directory),
        "generator": str(newest(tmp_path / "generator")),
    }
    recipe = resolve(ragged | {"task": task, "steps": 2})
    assert recipe.task.kept_counts() == (4, 9, 16)
    host = train(recipe, tmp_path / "recovery")
    assert host.history[-1][1]["train/total"] > 0


def test_compiled_models_take_batches_of_one_shape(ragged: dict[str, Any]) -> None:
    recipe = resolve(ragged | {"compile": True})
    samples = task_of(recipe).open_data(recipe)
    feed = task_of(recipe).open_feed(recipe, samples, loop.Worker())
    batches = [feed.batch(batch, None) for step in range(6) for batch in feed.stream(0).step(step)]
    assert {tuple(batch["indices"].shape) for batch in batches} == {(4, 16)}
    assert all("count" in batch for batch in batches)
