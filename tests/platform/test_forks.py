"""Forks: what goes on from a checkpoint of another run, bit for bit, and what cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mergevq.config import with_overrides
from mergevq.errors import InputError
from mergevq_platform import loop
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.recipe import ResolvedRecipe, complete, load, require_forkable, resolve
from mergevq_platform.storage import checkpoints, forks
from mergevq_platform.tracking.journal import Journal, RunIdentity
from mergevq_platform.tracking.records import JOURNAL_NAME

pytestmark = pytest.mark.usefixtures("one_thread")


def train(recipe: ResolvedRecipe, directory: Path, until: int | None = None) -> LocalHost:
    directory.mkdir(exist_ok=True)
    host = LocalHost(directory)
    loop.train(recipe, loop.Worker(), host, until)
    return host


@pytest.fixture(scope="module")
def trunks() -> dict[str, Path]:
    """What tests share: one run of 6 steps with checkpoints after 3 and 6."""
    return {}


@pytest.fixture
def trunk(
    small_recipe: dict[str, Any], trunks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run, trained for the first test that asks."""
    if "whole" not in trunks:
        trunks["whole"] = tmp_path_factory.mktemp("trunk") / "whole"
        train(resolve(small_recipe | {"steps": 6, "checkpoint_every": 3}), trunks["whole"])
    return trunks["whole"]


def fork_of(small_recipe: dict[str, Any], trunk: Path, *overrides: str, step: int = 3) -> ResolvedRecipe:
    tree = small_recipe | {"steps": 6, "checkpoint_every": 3, "fork": {"run": str(trunk), "step": step}}
    return forks.pinned(resolve(with_overrides(tree, overrides)), trunk.parent)


def state(directory: Path, step: int = 6) -> dict[str, Any]:
    path = directory / checkpoints.directory_name(step) / "resume.pt"
    return torch.load(path, weights_only=True)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{path}.{key}").items()}
    if isinstance(value, list):
        return {k: v for index, inner in enumerate(value) for k, v in flat(inner, f"{path}.{index}").items()}
    return {path: value}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    assert len(one) > 100
    return [
        name
        for name, value in one.items()
        if not (torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name])
    ]


def test_a_fork_that_changes_nothing_ends_bit_for_bit_as_the_run_that_never_stopped(
    small_recipe: dict[str, Any], trunk: Path, tmp_path: Path
) -> None:
    fork = train(fork_of(small_recipe, trunk), tmp_path / "fork")
    assert differing(state(trunk), state(tmp_path / "fork")) == []
    model = f"{checkpoints.directory_name(6)}/model.safetensors"
    assert (trunk / model).read_bytes() == (tmp_path / "fork" / model).read_bytes()
    assert [step for step, _ in fork.history] == [4, 5, 6]


def test_a_trunk_that_ends_early_is_the_beginning_of_the_whole_run(
    small_recipe: dict[str, Any], trunk: Path, tmp_path: Path
) -> None:
    recipe = resolve(small_recipe | {"steps": 6, "checkpoint_every": 100})
    host = train(recipe, tmp_path / "early", until=3)
    assert [step for step, _ in host.history] == [1, 2, 3]
    assert differing(state(trunk, 3), state(tmp_path / "early", 3)) == []


def test_a_fork_that_was_stopped_goes_on_from_its_own_checkpoint(
    small_recipe: dict[str, Any], trunk: Path, tmp_path: Path
) -> None:
    recipe = fork_of(small_recipe, trunk)
    train(recipe, tmp_path / "fork", until=5)
    train(recipe, tmp_path / "fork")
    assert differing(state(trunk), state(tmp_path / "fork")) == []


@pytest.mark.parametrize(
    "override",
    [
        "task.keep={kind: list, counts: [16]}",
        "task.losses.entropy.weight=1.0",
        "task.losses.adversarial.weight=0.5",
        "task.losses.alignment.weight=3.0",
        "optimizer.learning_rate=1e-2",
        "optimizer.weight_decay=0.5",
        "optimizer.betas=[0.1, 0.2]",
        "discriminator_optimizer={learning_rate: 1e-2, schedule: {kind: constant}}",
        "ema_decay=0.5",
    ],
)
def test_what_a_fork_changes_is_in_effect_from_its_first_step(
    override: str, small_recipe: dict[str, Any], trunk: Path, tmp_path: Path
) -> None:
    train(fork_of(small_recipe, trunk, override), tmp_path / "fork", until=4)
    same = trunk.parent / "same"
    if not same.is_dir():
        train(fork_of(small_recipe, trunk), same, until=4)
    one, other = (state(directory, 4) for directory in (same, tmp_path / "fork"))
    if override.startswith("discriminator_optimizer"):
        one, other = (saved["training"] for saved in (one, other))
    else:
        one, other = (saved["ema"] for saved in (one, other))
    assert differing(one, other)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=7", r"'seed' from 0 to 7: the trunk's data order"),
        ("global_batch=16", r"'global_batch' from 8 to 16: the trunk's place in the data"),
        ("data.window_blocks=3", r"'data\.window_blocks' from 16 to 3"),
        ("task.model.encoder.depth=4", r"'task\.model\.encoder\.depth' .* shapes of its model"),
        ("task.losses.alignment.prototypes=8", r"'task\.losses\.alignment\.prototypes' from 16 to 8"),
        ("task.losses.alignment={kind: none}", r"task\.losses\.alignment\.kind.* from 'self' to 'none'"),
        ("task.losses.adversarial={kind: none}", r"task\.losses\.adversarial\.discriminator"),
        ("task.losses.recovery.weight=0", r"at weight 0 its parameters are in no optimizer"),
        ("precision=bfloat16", r"'precision' from 'float32' to 'bfloat16': the trunk was computed with it"),
    ],
)
def test_what_the_trunk_was_made_of_cannot_change(
    override: str, message: str, small_recipe: dict[str, Any]
) -> None:
    before = complete(small_recipe)
    with pytest.raises(InputError, match=message) as error:
        require_forkable(before, complete(with_overrides(small_recipe, [override])), "run@4")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("a fork of 'run@4' cannot change ")


def test_how_a_run_is_measured_and_where_it_runs_may_change(small_recipe: dict[str, Any]) -> None:
    changed = with_overrides(
        small_recipe, ["cluster.workers=2", "log_every=3", "evaluation.keeps=[4]", "steps=99", "name=other"]
    )
    require_forkable(complete(small_recipe), complete(changed), "run@4")


def test_a_run_of_another_task_is_no_trunk(small_recipe: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="'run@4' trains a tokenizer, and the recipe a generator"):
        require_forkable(complete(small_recipe), load("demo_mergear"), "run@4")


def test_a_step_that_was_not_kept_is_answered_with_those_that_were(
    small_recipe: dict[str, Any], trunk: Path
) -> None:
    with pytest.raises(
        InputError, match="'whole@2' is no checkpoint, kept are steps 3, 6: fork one of these"
    ):
        fork_of(small_recipe, trunk, step=2)


def test_a_run_that_still_trains_is_no_trunk(
    small_recipe: dict[str, Any], trunk: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home" / "ray" / "busy"
    home.parent.mkdir(parents=True)
    home.symlink_to(trunk)
    identity = RunIdentity(name="busy", experiment="e", user="someone")
    with (
        Journal(home / JOURNAL_NAME, identity),
        pytest.raises(InputError, match="'busy' still trains, or is being measured"),
    ):
        fork_of(small_recipe, home)
    assert fork_of(small_recipe, home).fork is not None


def test_a_trunk_that_was_trained_anew_is_another(
    small_recipe: dict[str, Any], trunk: Path, tmp_path: Path
) -> None:
    recipe = fork_of(small_recipe, trunk)
    assert recipe.fork is not None
    about = Path(recipe.fork.run) / checkpoints.ABOUT
    stored = about.read_text()
    try:
        changed = json.loads(stored)
        changed["sha256"]["resume.pt"] = "0" * 64
        about.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=r"another checkpoint .* \(fork\.sha256 differs\)"):
            forks.pinned(recipe, tmp_path)
    finally:
        about.write_text(stored)


def test_nothing_is_left_to_train_after_the_last_step(small_recipe: dict[str, Any], trunk: Path) -> None:
    with pytest.raises(InputError, match="the fork begins after 6: nothing is left to train, raise steps"):
        fork_of(small_recipe, trunk, step=6)


@pytest.mark.parametrize("text", ["run", "run@", "@4", "run@x", "run@0", "run@-4"])
def test_a_fork_is_named_by_run_and_step(text: str) -> None:
    with pytest.raises(InputError, match="write RUN@STEP"):
        forks.parse_fork(text)


def test_the_trunks_own_recipe_is_forked_where_none_is_named(trunk: Path) -> None:
    fork = forks.parse_fork(f"{trunk}@3")
    recipe = forks.forked(fork, None, ["task.losses.entropy.weight=0.5"], str)
    assert recipe.tokenizer.losses.entropy.weight == 0.5
    assert recipe.fork == fork
    assert forks.name_of(fork) == "whole@3"
