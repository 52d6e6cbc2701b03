"""Fine-tuning: a tokenizer's training that starts from a trained one, with nothing of its state lost and nothing said twice."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import mergevq
from mergevq.config import to_tree, with_overrides
from mergevq.errors import InputError
from mergevq.losses.config import AnnealingConfig, EntropyConfig, TokenizerTrainingConfig
from mergevq_platform import cli, loop
from mergevq_platform.data import write_digits
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.operations.submission.verb import read_verb
from mergevq_platform.recipe import Pins, complete, load, locate, resolve
from mergevq_platform.storage import checkpoints, runs
from mergevq_platform.storage.runs import Run
from mergevq_platform.sweeps import Grid, Sweep, choice, mean_psnr
from raynodes import same


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def train(recipe: Any, directory: Path, **options: Any) -> LocalHost:
    directory.mkdir(exist_ok=True, parents=True)
    (directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(recipe))
    host = LocalHost(directory, **options)
    loop.train(recipe, loop.Worker(), host)
    return host


def newest(directory: Path) -> Path:
    return Path(checkpoints.listed(str(directory))[0])


def state(directory: Path) -> dict[str, Any]:
    return torch.load(newest(directory) / "resume.pt", weights_only=True)


def validated(host: LocalHost) -> dict[int, dict[str, float]]:
    return {step: values for step, values in host.history if any(name.startswith("val/") for name in values)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("initial")


@pytest.fixture
def run(place: Path, small_recipe: dict[str, Any]) -> Path:
    """A run of shapes: 8 steps, with a discriminator, prototypes and a teacher of its own. Made once."""
    directory = place / "run"
    if not directory.exists():
        tree = with_overrides(small_recipe, ["task.losses.adversarial={start_step: 2, lecam_decay: 0.5}"])
        tree |= {"steps": 8, "checkpoint_every": 8, "ema_decay": 0.8}
        train(resolve(tree), directory)
    return directory


@pytest.fixture
def tree(small_recipe: dict[str, Any], run: Path) -> dict[str, Any]:
    """A recipe that leaves everything to the run."""
    small_recipe["data"]["views"] = {"student_scale": [0.5, 1.0]}
    return small_recipe | {
        "name": "fine-tuned",
        "task": {"initial_run": str(run)},
        "steps": 2,
        "checkpoint_every": 2,
        "evaluation": {"batch": 16, "validation_images": 32, "every": 2},
    }


def test_what_a_recipe_leaves_out_is_that_of_the_initial_run(tree: dict[str, Any], run: Path) -> None:
    recipe, trained = resolve(tree), checkpoints.recipe_of(newest(run))
    task, before = recipe.tokenizer, trained.tokenizer
    assert (task.model, task.keep, task.preset) == (before.model, before.keep, before.preset)
    assert recipe.data.views.image_size == 16
    assert recipe.data.views.student_size == 16, "what its losses need"
    assert task.losses == replace(before.losses, adversarial=replace(before.losses.adversarial, start_step=0))
    assert task.initial_run == str(newest(run))
    assert task.initial_run_sha256 == checkpoints.sha256(newest(run) / "model.safetensors")
    assert resolve(recipe) == recipe
    changed = resolve(
        with_overrides(
            tree,
            ["task.model.keep=4", "task.losses.entropy.weight=0.2", "task.keep={kind: list, counts: [4]}"],
        )
    ).tokenizer
    assert changed.model == replace(before.model, keep=4)
    assert changed.losses == replace(task.losses, entropy=replace(task.losses.entropy, weight=0.2))
    assert changed.kept_counts() == (4,)


def test_losses_that_start_late_have_come_as_far_as_the_initial_run() -> None:
    entropy = EntropyConfig(annealing=AnnealingConfig(start_factor=3.0, steps=8))
    losses = TokenizerTrainingConfig.after(TokenizerTrainingConfig(entropy=entropy), 6)
    later = [losses.entropy.annealing.factor(step) for step in range(6)]
    assert later == pytest.approx([entropy.annealing.factor(6 + step) for step in range(6)])
    assert losses.after(100) == TokenizerTrainingConfig()


def test_training_begins_where_the_run_ended_with_a_fresh_optimizer(
    tree: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    # Without a step of any size: what is stored after two steps is what was there before the first.
    still = with_overrides(
        tree,
        [
            "optimizer.learning_rate=1e-30",
            "task.losses.adversarial.lecam_decay=0.999",
            "task.losses.alignment.centre_momentum=0.999",
        ],
    )
    host = train(resolve(still), tmp_path / "still")
    before, after = state(run), state(tmp_path / "still")
    assert before["training"].keys() == after["training"].keys()
    for name, value in before["training"].items():
        followers = name.startswith(("averages.", "self_teacher."))  # the run's are near, new ones are not
        near = torch.allclose(value, after["training"][name], rtol=0, atol=0.01)
        assert near if followers else torch.equal(value, after["training"][name]), name
        assert not name.startswith("averages.") or value.abs().max() > 1e-3, (
            "an average that was never made tells nothing"
        )
    averaged = [load_file(newest(of) / "model.safetensors") for of in (run, tmp_path / "still")]
    raw = "phases.tokenizer.tokenizer.decoder.conv_in.weight"
    expected = (
        averaged[0]["decoder.conv_in.weight"]
        .lerp(before["training"][raw], 0.001)
        .lerp(before["training"][raw], 0.001)
    )
    torch.testing.assert_close(averaged[1]["decoder.conv_in.weight"], expected, atol=1e-6, rtol=0)
    assert not torch.equal(averaged[0]["decoder.conv_in.weight"], before["training"][raw])
    assert after["step"] == 2
    steps = {int(of["step"]) for of in after["optimizers"]["tokenizer"]["state"].values()}
    assert steps == {2}, "of the initial run's 8 none"
    assert not host.warnings, "all of it came"


def test_fine_tuning_on_other_images_begins_at_the_validation_of_the_initial_run_and_improves(
    tree: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    write_digits(tmp_path / "digits", size=16)
    tuned = with_overrides(tree, [f"data.path={tmp_path / 'digits'}", "task.losses.adversarial={kind: none}"])
    recipe = resolve(tuned | {"steps": 16, "checkpoint_every": 16, "ema_decay": 0.5})
    host = train(recipe, tmp_path / "tuned")
    feed = loop.task_of(recipe).open_feed(recipe, loop.task_of(recipe).open_data(recipe), loop.Worker())
    initial = feed.validate(mergevq.load(newest(run)))
    first, *_, last = validated(host).values()
    assert next(iter(validated(host))) == 0
    assert first == {f"val/{name}": value for name, value in initial.items()}, "bit for bit"
    assert last["val/psnr"] > first["val/psnr"] + 0.5
    assert len(host.warnings) == 1
    assert "the discriminator of" in host.warnings[0]


def test_a_run_that_began_goes_on_bit_for_bit_without_the_initial_run(
    tree: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    moved = with_overrides(tree, [f"task.initial_run={tmp_path / 'run'}"]) | {
        "steps": 4,
        "checkpoint_every": 100,
    }
    recipe = resolve(moved)
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_at=2)
    shutil.rmtree(tmp_path / "run")
    again = resolve(yaml.safe_load((tmp_path / "parts" / "recipe.yaml").read_text()))
    assert again == recipe
    train(again, tmp_path / "parts")
    assert same(state(tmp_path / "whole"), state(tmp_path / "parts"))
    with pytest.raises(InputError, match=r"no checkpoint in '.*run/checkpoint_000000008'"):
        train(recipe, tmp_path / "another")


@pytest.mark.parametrize("weights", ["a tokenizer alone", "a checkpoint without its state"])
def test_weights_alone_are_enough_and_what_did_not_come_is_said(
    weights: str, tree: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    shutil.copytree(newest(run), tmp_path / "alone")
    (tmp_path / "alone" / "resume.pt").unlink()
    if weights == "a tokenizer alone":
        (tmp_path / "alone" / "checkpoint.json").unlink()
        (tmp_path / "alone" / "recipe.yaml").unlink()
    changes = [f"task.initial_run={tmp_path / 'alone'}", "optimizer.learning_rate=1e-30"]
    changes += (
        [] if weights != "a tokenizer alone" else ["task.losses.adversarial.discriminator.num_layers=1"]
    )
    recipe = resolve(with_overrides(tree, changes))
    host = train(recipe, tmp_path / "tuned")
    exported = load_file(newest(run) / "model.safetensors")
    after = state(tmp_path / "tuned")["training"]
    assert all(
        torch.equal(value, after[f"phases.tokenizer.tokenizer.{name}"]) for name, value in exported.items()
    )
    said = "\n".join(host.warnings)
    assert "holds weights alone" in said
    assert "no discriminator: that of this training starts untrained" in said
    if weights == "a tokenizer alone":
        assert recipe.tokenizer.kept_counts() == (9,)
        assert "does not say at which kept counts it was trained; here they are 9" in said
    else:
        assert "no trained weights of its alignment" in said
        own = {
            name: after[f"phases.tokenizer.tokenizer.{name}"]
            for name in exported
            if name.startswith("encoder.")
        }
        assert all(torch.equal(value, after[f"self_teacher.encoder.{name}"]) for name, value in own.items())


MISFITS = {
    "bits": (
        ["task.model.quantizer.bits=8"],
        r"task\.initial_run: .*checkpoint_000000008 does not fit: task\.model\.quantizer\.bits is 6 there, 8 here, so that these differ: "
        r"decoder\.conv_in\.weight \(32 x 6 x 3 x 3 there, 32 x 8 x 3 x 3 here\), .*: make them equal",
    ),
    "depth": (
        ["task.model.encoder.depth=3"],
        r"encoder\.depth is 2 there, 3 here, .* encoder\.blocks\.2\.[a-z.0-9]+ \(not there, .* here\).* and \d+ more: make them equal",
    ),
    "the image size, with a query for each cell": (
        ["task.model.image_size=32", "task.keep={kind: list, counts: [64]}"],
        r"task\.model\.image_size is 16 there, 32 here.*recovery\.queries \(.*initial_except=\[recovery\]",
    ),
    "the width of the teacher": (
        ["task.model.head.out=24", "task.losses.alignment={kind: supervised, classes: 12}"],
        r"does not fit: .*model\.head\.out is 16 there, 24 here.* head\.layers\.4\.bias \(16 there, 24 here\).*"
        r"or start these anew with task\.initial_except=\[head\]",
    ),
    "the discriminator": (
        ["task.losses.adversarial.discriminator.channels=16"],
        r"phases\.discriminator.* \(8 there, 16 here\).*: start these anew with task\.initial_except=\[discriminator\]",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_shapes_that_do_not_fit_are_named_with_their_cause_and_the_fix(
    what: str, tree: dict[str, Any]
) -> None:
    overrides, message = MISFITS[what]
    with pytest.raises(InputError, match=message) as caught:
        resolve(with_overrides(tree, overrides))
    assert "\n" not in str(caught.value)


def test_parts_that_do_not_fit_start_anew_where_the_recipe_says_so(
    tree: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    changes = ["task.model.head.out=24", "task.losses.alignment={kind: supervised, classes: 12}"]
    changes += ["task.initial_except=[head]", "task.model.encoder.heads=1"]
    host = train(resolve(with_overrides(tree, changes)), tmp_path / "tuned")
    said = "\n".join(host.warnings)
    assert "trained otherwise: task.model.encoder.heads is 2 there, 1 here, task.model.head.out is" in said
    assert "no trained weights of its alignment: that of this training starts untrained" in said
    assert state(tmp_path / "tuned")["training"]["phases.tokenizer.tokenizer.head.layers.4.bias"].shape == (
        24,
    )


def test_other_kept_counts_are_said(tree: dict[str, Any], tmp_path: Path) -> None:
    host = train(
        resolve(with_overrides(tree, ["task.keep={kind: list, counts: [9, 12]}"])), tmp_path / "tuned"
    )
    assert [
        line for line in host.warnings if "was trained at 4, 9, 16 kept tokens; here they are 9, 12" in line
    ]


def test_what_cannot_be_started_from_is_an_error_of_one_line(
    tree: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError, match=r"initial_run is '.*' and initial_weights 'dino.pth'.*leave one out"
    ):
        complete(with_overrides(tree, ["task.initial_weights=dino.pth"]))
    with pytest.raises(InputError, match=r"initial_except is \['head'\].*initial_run is not given"):
        complete(
            with_overrides(
                tree,
                [
                    "task.initial_run=null",
                    "task.initial_except=[head]",
                    "task.preset=test_gr",
                    "task.keep={kind: list, counts: [4]}",
                    "task.losses={}",
                    "data.views.image_size=16",
                ],
            )
        )
    with pytest.raises(InputError, match=r"no checkpoint in '/nowhere'"):
        resolve(with_overrides(tree, ["task.initial_run=/nowhere"]))
    with pytest.raises(InputError, match=r"data\.views\.image_size is 24 but the tokenizer works at 16"):
        resolve(with_overrides(tree, ["data.views.image_size=24"]))
    with pytest.raises(InputError, match=r"unknown key 'task\.lossses'"):
        complete(with_overrides(tree, ["task.lossses={}"]))
    recipe = resolve(tree)
    shutil.copytree(run, tmp_path / "run")
    weights = newest(tmp_path / "run") / "model.safetensors"
    other = resolve(with_overrides(to_tree(recipe), [f"task.initial_run={newest(tmp_path / 'run')}"]))
    (newest(tmp_path / "run") / "checkpoint.json").unlink()
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    with pytest.raises(InputError, match=r"task\.initial_run: .* has weights .*, but .* is recorded"):
        train(other, tmp_path / "tuned")
    small = {"kind": "classifier", "model": {"classes": 12}}
    with pytest.raises(InputError, match=r"data\.views\.image_size is missing"):
        complete(tree | {"task": small})


def test_a_run_says_where_it_comes_from(tree: dict[str, Any], tmp_path: Path) -> None:
    recipe = resolve(tree)
    found = runs.tags(recipe, Run("tuned", tmp_path, str(tmp_path)))
    assert found["mergevq.initial_run"] == recipe.tokenizer.initial_run
    assert found["mergevq.initial_run_sha256"] == recipe.tokenizer.initial_run_sha256
    assert found["mergevq.variant"] == "test_gr"


def test_the_trials_of_a_sweep_start_from_the_run_that_the_sweep_has_found(
    tree: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(with_overrides(tree, ["task.initial_run=named"])))
    sweep = Sweep(
        name="rates",
        question="which?",
        recipe=str(tmp_path / "recipe.yaml"),
        space={"task.losses.entropy.weight": choice(0.1, 0.3)},
        search=Grid(),
        objectives=(mean_psnr(),),
    )
    sweep.check()
    pinned, first = sweep.pinned(lambda name: {"named": str(run)}.get(name, name))
    assert first.tokenizer.losses.entropy.weight == 0.1
    trial = resolve(pinned.recipe_of({"task.losses.entropy.weight": 0.3}, seed=1), pins=pinned.pins)
    assert trial.tokenizer.initial_run == str(newest(run))
    assert trial.tokenizer.losses.entropy.weight == 0.3
    assert Pins.between(locate(complete(tree)), first).found.keys() >= {"task.initial_run_sha256"}


def test_a_job_may_name_a_run_that_only_the_cluster_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "finetune_tokenizer", "task.initial_run=RUN", "data.path=/shared/own"]
    assert read_verb(words, cli.parse).words == words
    with pytest.raises(InputError, match=r"task\.initial_run is 'runs/ray/RUN', a relative path"):
        read_verb([*words[:2], "task.initial_run=runs/ray/RUN", words[3]], cli.parse)
    assert load("finetune_tokenizer").task.kind == "tokenizer"
