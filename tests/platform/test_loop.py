"""The loop in one process: exact resume, stopping, broken numbers, and what each step depends on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergevq.errors import InputError
from mergevq_platform import loop, optim
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.meter import BrokenTraining
from mergevq_platform.recipe import Recipe, resolve
from mergevq_platform.storage import checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")


def train(recipe: Recipe, directory: Path, **options: Any) -> LocalHost:
    directory.mkdir(exist_ok=True)
    host = LocalHost(directory, **options)
    loop.train(recipe, loop.Worker(), host)
    return host


def resume_state(directory: Path) -> dict[str, Any]:
    return torch.load(Path(checkpoints.listed(str(directory))[0]) / "resume.pt", weights_only=True)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{path}.{key}").items()}
    if isinstance(value, list):
        return {k: v for index, inner in enumerate(value) for k, v in flat(inner, f"{path}.{index}").items()}
    return {path: value}


def assert_identical(one: dict[str, Any], other: dict[str, Any]) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    assert len(one) > 100
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
        else:
            assert value == other[name], name


def test_a_stopped_and_resumed_run_is_the_undisturbed_run_bit_for_bit(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = resolve(small_recipe | {"steps": 12, "checkpoint_every": 100})
    whole = train(recipe, tmp_path / "whole")
    first = train(recipe, tmp_path / "parts", stop_at=6)
    assert first.status["step"] == 6
    second = train(recipe, tmp_path / "parts")

    assert_identical(resume_state(tmp_path / "whole"), resume_state(tmp_path / "parts"))
    assert first.history + second.history == whole.history
    assert [step for step, _ in whole.history] == list(range(1, 13))


def test_speed_and_memory_are_recorded_beside_the_losses(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    host = train(resolve(small_recipe), tmp_path / "run")
    step, measured = host.system[-1]
    assert step == 8
    assert measured["system/images_per_second"] > 0
    assert 0 <= measured["system/waiting_share"] <= 1
    assert measured["system/memory_gib"] > 0.05


def test_channels_last_trains_to_the_same_weights_within_rounding(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    states = []
    for name, channels_last in (("rows", False), ("channels", True)):
        train(resolve(small_recipe | {"steps": 1, "channels_last": channels_last}), tmp_path / name)
        states.append(resume_state(tmp_path / name)["training"])
    assert states[0].keys() == states[1].keys()
    # Adam's first step moves every weight by the learning rate, whatever its gradient's size: compare most, not all.
    close = [
        torch.isclose(states[0][name].float(), states[1][name].float(), atol=1e-4).float().mean()
        for name in states[0]
    ]
    assert torch.stack(close).mean() > 0.99


def test_the_stopping_point_does_not_change_the_export(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = resolve(small_recipe | {"steps": 6})
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "parts", stop_at=3)
    train(recipe, tmp_path / "parts")
    exports = [
        (Path(checkpoints.listed(str(tmp_path / name))[0]) / "model.safetensors").read_bytes()
        for name in ("whole", "parts")
    ]
    assert exports[0] == exports[1]


def test_every_loss_term_is_recorded_and_finite(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    host = train(resolve(small_recipe | {"steps": 2}), tmp_path)
    names = host.history[-1][1]
    expected = {
        "total",
        "reconstruction",
        "adversarial",
        "commitment",
        "sample_entropy",
        "codebook_entropy",
        "recovery",
    }
    expected |= {
        "recovery_accuracy",
        "alignment",
        "d_loss",
        "lecam",
        "kept_tokens",
        "learning_rate",
        "tokenizer_gradient_norm",
    }
    assert {f"train/{name}" for name in expected} <= names.keys()
    assert all(abs(value) < float("inf") for value in names.values())


def test_training_reduces_the_reconstruction_loss(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["optimizer"] |= {"learning_rate": 5e-3, "betas": [0.9, 0.95]}
    small_recipe["task"]["losses"] = {"adversarial": {"kind": "none"}, "entropy": {"weight": 0.01}}
    small_recipe |= {"steps": 80, "checkpoint_every": 100, "global_batch": 32, "micro_batch": 32}
    losses = [values["train/reconstruction"] for _, values in train(resolve(small_recipe), tmp_path).history]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


def test_the_kept_count_is_a_function_of_seed_and_step(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = resolve(small_recipe)
    drawn = [recipe.task.draw_keep(recipe.seed, step) for step in range(200)]
    assert drawn == [recipe.task.draw_keep(recipe.seed, step) for step in range(200)]
    assert set(drawn) == {4, 9, 16}
    other = resolve(small_recipe | {"seed": 1})
    assert drawn != [other.task.draw_keep(other.seed, step) for step in range(200)]


def test_a_number_that_breaks_stops_the_run_and_names_step_and_term(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["optimizer"]["learning_rate"] = 1e30
    with pytest.raises(BrokenTraining, match=r"step \d+: '\w+' is (nan|-?inf).*on_nan=skip"):
        train(resolve(small_recipe), tmp_path)
    assert not checkpoints.listed(str(tmp_path)), "no checkpoint may hold broken weights"


def test_float16_leaves_out_steps_while_it_looks_for_a_scale_and_then_trains(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    recipe = resolve(small_recipe | {"precision": "float16", "steps": 10, "checkpoint_every": 10})
    history = train(recipe, tmp_path).history
    scales = [values["train/loss_scale"] for _, values in history]
    assert "train/tokenizer_gradient_norm" not in history[0][1], "65,536 overflows: a step that is left out"
    assert scales[0] == 32768
    assert "train/tokenizer_gradient_norm" in history[-1][1]
    assert scales[-1] >= 1


def test_gradients_that_overflow_at_every_scale_stop_the_run(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "loss_scaler", lambda *_: torch.amp.GradScaler("cpu", init_scale=2.0**-3))
    recipe = resolve(small_recipe | {"precision": "float16", "steps": 4})
    with pytest.raises(BrokenTraining, match=r"at every loss scale.*precision=bfloat16"):
        train(recipe, tmp_path)


def test_a_discriminator_that_starts_within_a_logging_window_is_recorded(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["task"]["losses"]["adversarial"] |= {"adaptive": True, "start_step": 3}
    history = train(resolve(small_recipe | {"log_every": 4}), tmp_path).history
    assert [step for step, _ in history] == [4, 8]
    assert all(values["train/d_weight"] > 0 for _, values in history)


def test_the_discriminator_does_not_move_before_its_start_step(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["task"]["losses"]["adversarial"] |= {"start_step": 4}
    small_recipe["discriminator_optimizer"] = {
        "learning_rate": 1e-2,
        "weight_decay": 0.5,
        "schedule": {"kind": "constant"},
    }
    found = {}
    for steps in (1, 4, 5):
        recipe = resolve(small_recipe | {"steps": steps, "checkpoint_every": steps})
        train(recipe, tmp_path / str(steps))
        state = resume_state(tmp_path / str(steps))["training"]
        found[steps] = {k: v for k, v in state.items() if k.startswith("phases.discriminator")}
    assert found[1].keys() == found[4].keys()
    assert found[1]
    assert all(torch.equal(value, found[4][name]) for name, value in found[1].items())
    assert not all(torch.equal(value, found[5][name]) for name, value in found[1].items())


def test_steps_that_are_left_out_are_said_and_the_next_ones_are_not(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = resolve(small_recipe | {"on_nan": "skip", "log_every": 4, "steps": 8})
    accumulate, calls = loop.accumulate, 0

    def broken(phases: Any, batch: dict[str, Any], *rest: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:  # a micro-batch of the second step
            batch = batch | {"image": batch["image"] * torch.nan}
        return accumulate(phases, batch, *rest, **options)

    monkeypatch.setattr(loop, "accumulate", broken)
    host = train(recipe, tmp_path)
    said = [warning for warning in host.warnings if "left out" in warning]
    assert len(said) == 2
    for phase, warning in zip(("tokenizer", "discriminator"), said, strict=True):
        assert f"step 2: the gradient of the {phase} is not finite: its step was left out" in warning
        assert "on_nan=skip" in warning
    later = host.history[-1][1]
    assert all(abs(value) < float("inf") for value in later.values())
    weights = resume_state(tmp_path)["training"]
    assert all(value.isfinite().all() for value in weights.values())


def test_skipping_broken_steps_leaves_the_weights_alone(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = resolve(small_recipe | {"on_nan": "skip", "steps": 1})
    from mergevq_platform.data import open_dataset

    training = loop.build(recipe, open_dataset(recipe.data.path, "train"))
    optimizers = optim.make_optimizers(recipe, training)
    state = checkpoints.TrainingState(training, None, optimizers)  # type: ignore[arg-type]
    before = {name: p.detach().clone() for name, p in training.named_parameters()}
    for parameter in training.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, float("nan"))
    optim.update(recipe, training, state)
    for name, parameter in training.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_batch_larger_than_the_data_is_refused_with_the_fix(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe |= {"global_batch": 512, "micro_batch": 512}
    with pytest.raises(
        InputError, match=r"192 training samples, fewer than global_batch 512: lower global_batch"
    ):
        train(resolve(small_recipe), tmp_path)


def test_a_corrupt_checkpoint_is_not_resumed_from(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = resolve(small_recipe | {"steps": 2})
    train(recipe, tmp_path)
    newest = Path(checkpoints.listed(str(tmp_path))[0])
    damaged = bytearray((newest / "resume.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (newest / "resume.pt").write_bytes(damaged)
    with pytest.raises(InputError, match=r"resume\.pt is corrupt.*earlier checkpoint"):
        train(resolve(small_recipe | {"steps": 4}), tmp_path)


def test_newest_falls_back_to_the_checkpoint_before_a_corrupt_one(
    small_recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(resolve(small_recipe), tmp_path)
    newest, before = checkpoints.listed(str(tmp_path))
    (Path(newest) / "model.safetensors").write_bytes(b"torn")
    with checkpoints.newest(str(tmp_path)) as found:
        assert found == Path(before)
    assert "corrupt" in capsys.readouterr().out


def test_epochs_become_steps(small_recipe: dict[str, Any]) -> None:
    from mergevq_platform.data import open_dataset

    tree = {key: value for key, value in small_recipe.items() if key != "steps"} | {"epochs": 1.5}
    recipe = resolve(tree)
    assert loop.length(recipe, open_dataset(recipe.data.path, "train")) == (36, 24)
