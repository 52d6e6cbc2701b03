"""Stage 2 training: what the loss is, what is random in it, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mergevq.config import merged, to_tree
from mergevq.errors import InputError
from mergevq.generation import (
    GeneratorTrainingConfig,
    SamplingConfig,
    build_generator,
    generator_preset,
    parse_generator,
    sample,
)
from mergevq.serialization import load_generator, save_generator
from mergevq.training.generator import GeneratorTraining
from mergevq.training.protocol import Output

KINDS = ("raster", "mergear", "random_order")


def batch(size: int = 6, keep: int = 9, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    # Every kept token has a cell, in canonical order: its first cell comes after the earlier ones'.
    assignment = torch.cat([torch.arange(keep), torch.randint(0, keep, (16 - keep,), generator=random)])
    return {
        "indices": torch.randint(0, 64, (size, keep), generator=random),
        "assignment": assignment.expand(size, -1),
        "label": torch.arange(size) % 3,
    }


def step(training: GeneratorTraining, data: dict[str, Tensor], keep: int = 9, seed: int = 0) -> Output:
    torch.manual_seed(seed)  # as the loop does for every (seed, step, rank)
    return training.phases["generator"](data, {}, keep=keep, step=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transformer", [{}, {"qk_norm": True}])
def test_every_parameter_gets_a_finite_gradient(kind: str, transformer: dict) -> None:
    torch.manual_seed(0)
    tree = merged(to_tree(generator_preset(f"test_{kind}")), {"transformer": transformer})
    training = GeneratorTraining(build_generator(parse_generator(tree)))
    with torch.no_grad():  # at their start the heads are zero and pass nothing back
        for head in training.model().tokens.heads:
            head.get_parameter("weight").normal_(std=0.1)
    output = step(training, batch())
    assert set(output.losses) == {
        *("total", "token_loss_0", "token_loss_1", "accuracy", "accuracy_0", "accuracy_1")
    }
    output.total.backward()
    for name, parameter in training.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0 or name.endswith("keeps.weight"), name


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_smoothed_cross_entropies_of_the_prediction(random_generator: Callable, kind: str) -> None:
    training = GeneratorTraining(random_generator(kind), GeneratorTrainingConfig(label_smoothing=0.1)).eval()
    output, data = step(training, batch()), batch()
    torch.manual_seed(0)
    prediction = training.model()(data["indices"], data["assignment"], data["label"], 9)
    parts = training.model().tokens.split(prediction.targets)
    total, right = torch.zeros((), dtype=torch.float64), []
    for j, logits in enumerate(prediction.logits):
        log_p = logits - logits.exp().sum(-1, keepdim=True).log()
        hit = log_p.gather(-1, parts[..., j, None])[..., 0]
        torch.testing.assert_close(
            output.losses[f"token_loss_{j}"].double(), -hit.mean(), rtol=1e-5, atol=1e-5
        )
        total += -(0.9 * hit + 0.1 * log_p.mean(-1)).mean()
        right.append(logits.argmax(-1) == parts[..., j])
        assert output.losses[f"accuracy_{j}"] == pytest.approx(float(right[-1].double().mean()))
    torch.testing.assert_close(output.total.double(), total, rtol=1e-5, atol=1e-5)
    assert output.losses["accuracy"] == pytest.approx(float((right[0] & right[1]).double().mean()))


def test_raster_targets_are_the_codes_of_all_cells_and_random_order_targets_the_kept_codes(
    random_generator: Callable,
) -> None:
    data = batch()
    cells = torch.stack(
        [codes[slots] for codes, slots in zip(data["indices"], data["assignment"], strict=True)]
    )
    for kind in ("raster", "mergear"):
        assert torch.equal(random_generator(kind)(*data.values(), 9).targets, cells)
    targets = random_generator("random_order")(*data.values(), 9).targets
    assert torch.equal(targets.sort(1).values, data["indices"].sort(1).values)


def test_duplicates_are_told_by_code_or_by_cluster(random_generator: Callable) -> None:
    data = batch()
    data["indices"][:] = 7  # distinct clusters with equal codes
    data["indices"][:, :2] = torch.tensor([1, 2])
    by = {}
    for duplicates in ("code", "cluster"):
        logits = random_generator("mergear", {"duplicates": duplicates})(*data.values(), 9).logits[0]
        by[duplicates] = logits
    # Cells 2 to 8 are first of their cluster; by code only cell 2 is, so cell 3 is forgotten when cell 6 is predicted.
    torch.testing.assert_close(by["code"][:, :6], by["cluster"][:, :6])
    assert (by["code"][:, 6] - by["cluster"][:, 6]).abs().max() > 1e-6


def test_labels_are_dropped_as_often_as_configured_and_in_training_alone(random_generator: Callable) -> None:
    training = GeneratorTraining(random_generator("raster", {"label_drop": 0.3}))
    generator, seen = training.model(), []
    handle = generator.classes.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].clone()))
    data = batch(2000)
    data = {**data, "label": data["label"].clone()}
    data["label"][:10] = -1
    with torch.no_grad():
        step(training.eval(), data)
        assert torch.equal(seen[-1], torch.where(data["label"] < 0, 3, data["label"])), "-1 is no class"
        step(training.train(), data)
    handle.remove()
    dropped = (seen[-1][10:] == 3).float().mean()
    assert abs(float(dropped) - 0.3) < 4 * (0.3 * 0.7 / 1990) ** 0.5
    kept = seen[-1] != 3
    assert torch.equal(seen[-1][kept], data["label"][kept])


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_a_function_of_the_seed_of_the_global_random_numbers(kind: str) -> None:
    torch.manual_seed(0)
    training = GeneratorTraining(build_generator(generator_preset(f"test_{kind}")))
    with torch.no_grad():
        for head in training.model().tokens.heads:
            head.get_parameter("weight").normal_()
    first, again, other = (float(step(training, batch(), seed=seed).total.detach()) for seed in (1, 1, 2))
    assert first == again != other


def test_a_kept_count_that_the_generator_does_not_know_is_refused() -> None:
    for kind in ("mergear", "random_order"):
        training = GeneratorTraining(build_generator(generator_preset(f"test_{kind}")))
        with pytest.raises(InputError, match="keep is 5: this generator was trained with 4, 9, 16"):
            step(training, batch(keep=5), keep=5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_learns_which_codes_a_class_has(kind: str) -> None:
    torch.manual_seed(0)
    shape = {"transformer": {"dropout": 0.0, "token_dropout": 0.0}, "label_drop": 0.0}
    generator = build_generator(parse_generator(merged(to_tree(generator_preset(f"test_{kind}")), shape)))
    training = GeneratorTraining(generator, GeneratorTrainingConfig(label_smoothing=0.0))
    optimizer = torch.optim.AdamW(training.parameters(), lr=1e-2)
    data = batch(3)
    for i in range(100):
        output = step(training, data, seed=i)
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
    assert output.losses["accuracy"] > 0.9
    made = sample(
        generator.eval(),
        torch.arange(3),
        keep=None if kind == "raster" else 9,
        sample_ids=torch.arange(3),
        seed=0,
        sampling=SamplingConfig(temperature=0.0),
    )
    wanted = data["indices"] if kind == "random_order" else data["indices"].gather(1, data["assignment"])
    assert (made.indices == wanted).float().mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_survives_its_directory(kind: str, tmp_path: Path) -> None:
    training = GeneratorTraining(build_generator(generator_preset(f"test_{kind}")))
    training.export(training.model(), tmp_path / "generator")
    loaded = load_generator(tmp_path / "generator")
    assert loaded.config == training.model().config
    assert not loaded.training
    for name, tensor in training.model().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_directory_that_holds_no_such_generator_is_refused(tmp_path: Path) -> None:
    import mergevq

    with pytest.raises(InputError, match="no generator in"):
        load_generator(tmp_path)
    mergevq.save(mergevq.create("test_gr"), tmp_path / "tokenizer")
    with pytest.raises(InputError, match="describes 'mergevq tokenizer 1', not a 'mergevq generator 1'"):
        load_generator(tmp_path / "tokenizer")
    save_generator(build_generator(generator_preset("test_raster")), tmp_path / "generator")
    file = tmp_path / "generator" / "config.json"
    file.write_text(file.read_text().replace('"intra_depth": 1', '"intra_depth": 2'))
    with pytest.raises(InputError, match=r"model\.safetensors does not belong to its config\.json"):
        load_generator(tmp_path / "generator")
    file.write_text(file.read_text().replace('"intra_depth": 2', '"intra_deph": 2'))
    with pytest.raises(
        InputError, match=r"unknown key '.*generator\.intra_deph': did you mean 'intra_depth'"
    ):
        load_generator(tmp_path / "generator")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": [6, 6]}, r"split \[6, 6\] has 12 bits, the codes have 6"),
        ({"grid_tokens": 15}, "grid_tokens 15 is not a square"),
        ({"keeps": [4, 4]}, "must name each kept count once"),
        ({"keeps": [4, 25]}, "keeps has 25, more than the 16 grid tokens"),
        ({"transformer": {"width": 36}}, "width 36 must be a multiple of 4 x heads 2"),
    ],
)
def test_impossible_configurations_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_generator(merged(to_tree(generator_preset("test_mergear")), changes))
