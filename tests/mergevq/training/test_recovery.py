"""Fine-tuning Source Recovery: what changes, what does not, and what it is worth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mergevq
from mergevq.ema import Ema
from mergevq.errors import InputError
from mergevq.generation import Generator, build_generator, generator_preset
from mergevq.training.recovery import CodeResampler, RecoveryTraining, RecoveryTrainingConfig

KEEP = 9


@pytest.fixture
def tokenizer() -> mergevq.MergeVQ:
    torch.manual_seed(0)
    return mergevq.create("test_gr").eval()


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(1)
    return build_generator(generator_preset("test_random_order"))


def batch(seed: int, count: int = 32) -> dict[str, Tensor]:
    """Images of smooth colours, so that neighbouring cells merge."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 3, 3, generator=draws) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, (16, 16), mode="bicubic").clamp(-1, 1)
    return {"image": images, "label": torch.arange(count) % 3}


def tune(training: RecoveryTraining, steps: int, decay: float = 0.5) -> Ema:
    """So many steps of AdamW, as the loop takes them."""
    (phase,) = training.phases.values()
    groups = [
        {"params": group.parameters, "weight_decay": 0.01 if group.decays else 0.0}
        for group in training.parameter_groups("recovery")
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    ema = Ema(training.model(), decay)
    for step in range(steps):
        torch.manual_seed(step)
        phase(batch(step), {}, keep=KEEP, step=step).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
    return ema


@torch.no_grad()
def accuracy(tokenizer: mergevq.MergeVQ) -> float:
    """Share of cells of unseen images that are given to the right kept token."""
    encoded = tokenizer.encode(batch(10_000, 256)["image"], KEEP)
    predicted = tokenizer.recover(encoded.codes).argmax(-1)
    return float((predicted == encoded.source.assignment).float().mean())


@pytest.mark.parametrize("generated", [False, True])
def test_nothing_but_recovery_changes_bit_for_bit(
    generated: bool, tokenizer: mergevq.MergeVQ, generator: Generator, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    written_by = {name: value.clone() for name, value in generator.state_dict().items()}
    training = RecoveryTraining(tokenizer, generator=generator if generated else None)
    ema = tune(training, 3, decay=0.9)
    training.export(ema.averaged, tmp_path)
    exported = mergevq.load(tmp_path)
    assert exported.config == tokenizer.config
    for state in (training.model().state_dict(), exported.state_dict()):
        same = {name for name, value in state.items() if torch.equal(value, before[name])}
        changed = state.keys() - same
        assert changed == {name for name in before if name.startswith("recovery.")}
    assert all(torch.equal(value, written_by[name]) for name, value in generator.state_dict().items())
    images = batch(0)["image"]
    assert torch.equal(
        exported.encode(images, KEEP).indices, mergevq.load(tmp_path).encode(images, KEEP).indices
    )


def test_every_parameter_of_recovery_learns_and_a_generator_is_no_part_of_the_state(
    tokenizer: mergevq.MergeVQ, generator: Generator
) -> None:
    training = RecoveryTraining(tokenizer, generator=generator)
    (phase,) = training.phases.values()
    phase(batch(0), {}, keep=KEEP, step=0).total.backward()
    learning = {name for name, p in training.named_parameters() if p.grad is not None}
    assert learning == {n for n, _ in training.named_parameters() if ".tokenizer.recovery." in n}
    grouped = [p for group in training.parameter_groups("recovery") for p in group.parameters]
    assert len(grouped) == len(learning)
    assert not any("resampler" in name for name in training.resume_state())


def test_tuning_places_cells_far_better_than_an_untrained_recovery(tokenizer: mergevq.MergeVQ) -> None:
    untrained = accuracy(tokenizer)
    ema = tune(RecoveryTraining(tokenizer), 60)
    tuned = accuracy(ema.averaged)
    print(f"untrained {untrained:.3f}, tuned {tuned:.3f}")
    assert untrained < 0.25, "nine kept tokens: chance is 0.11"
    assert tuned > untrained + 0.15


def test_with_a_generator_its_codes_are_placed_where_the_image_has_them(
    tokenizer: mergevq.MergeVQ, generator: Generator
) -> None:
    settings = RecoveryTrainingConfig(generated_fraction=0.6)
    (phase,) = RecoveryTraining(tokenizer, settings, generator).phases.values()
    images = batch(0)
    torch.manual_seed(0)
    output = phase(images, {}, keep=KEEP, step=0)
    torch.manual_seed(0)
    encoded = tokenizer.encode(images["image"], KEEP)
    indices = CodeResampler(generator, 0.6)(encoded.indices, images["label"])
    logits = tokenizer.recover(tokenizer.quantizer.codes(indices))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), encoded.source.assignment.flatten())
    assert torch.equal(output.total, expected)
    share = output.losses["changed_fraction"]
    assert 0 < share <= 0.6
    assert share == (indices != encoded.indices).float().mean()


def test_a_generator_writes_its_share_and_leaves_the_rest(generator: Generator) -> None:
    indices = torch.randint(64, (50, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 3
    resampler, changed = CodeResampler(generator, 0.5), []
    for seed in range(20):
        torch.manual_seed(seed)
        written = resampler(indices, labels)
        torch.manual_seed(seed)
        assert torch.equal(written, resampler(indices, labels)), "a function of the step's seed"
        assert written.min() >= 0
        assert written.max() < 64
        changed.append((written != indices).sum(1))
    shares = torch.stack(changed)
    assert shares.max() <= 8, "at most half of sixteen"
    # A uniform share of at most a half, of which an untrained generator hits one code in 64 by chance.
    assert shares.float().mean() == pytest.approx(16 * 0.25 * 63 / 64, rel=0.25)
    assert (shares.max(1).values - shares.min(1).values <= 3).all(), "one share for a batch"


def test_codes_in_training_are_those_of_use(tokenizer: mergevq.MergeVQ) -> None:
    config = tokenizer.config
    dropping = mergevq.MergeVQ(
        dataclasses.replace(
            config, encoder=dataclasses.replace(config.encoder, drop_path=0.9, layer_scale=1.0)
        )
    )
    (phase,) = RecoveryTraining(dropping).phases.values()
    losses = []
    for seed, dtype in ((0, None), (1, None), (0, torch.bfloat16)):
        torch.manual_seed(seed)
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            losses.append(phase(batch(0), {}, keep=KEEP, step=0))
    assert torch.equal(losses[0].total, losses[1].total), "no drop path"
    assert torch.equal(losses[0].losses["recovery_baseline"], losses[2].losses["recovery_baseline"]), (
        "float32 sources"
    )


def test_what_cannot_be_tuned_is_said(tokenizer: mergevq.MergeVQ) -> None:
    with pytest.raises(InputError, match="no Source Recovery to fine-tune"):
        RecoveryTraining(mergevq.create("test_gr", recovery=None))
    with pytest.raises(InputError, match="a mergear generator gives every cell its code"):
        RecoveryTraining(tokenizer, generator=build_generator(generator_preset("test_mergear")))
