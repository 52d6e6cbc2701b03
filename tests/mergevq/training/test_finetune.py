"""Fine-tuning and probing in a loop: what is trained, at which rate, from which images."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import mergevq
from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.layers import DropPath, MergeBlock
from mergevq.training.finetune import (
    FineTuneConfig,
    FineTunedConfig,
    FineTuneTraining,
    fine_tuned,
    layer_of,
    load_fine_tuned,
    mixed,
)
from mergevq.training.probe import ProbeTraining, ProbeTrainingConfig

PLAIN = FineTuneConfig(mixup=0, cutmix=0, drop_path=0)


@pytest.fixture(scope="module")
def tokenizer() -> mergevq.MergeVQ:
    torch.manual_seed(0)
    return mergevq.create("test_r")


def batch(count: int = 8, classes: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1,
        "label": torch.arange(count) % classes,
    }


def loss_of(training: FineTuneTraining | ProbeTraining, data: dict[str, torch.Tensor]) -> torch.Tensor:
    (phase,) = training.phases.values()
    return phase(data, {}, keep=None, step=0).total


@pytest.mark.parametrize("feature", ["mean", "cls"])
@pytest.mark.parametrize("preset", ["test_r", "test_gr"])
def test_every_parameter_is_trained_and_in_one_group(preset: str, feature: str) -> None:
    torch.manual_seed(0)
    training = FineTuneTraining(mergevq.create(preset), FineTuneConfig(feature=feature), classes=3)
    training.model().head.weight.data.normal_()  # as published it starts at nearly zero, and passes nothing on
    loss_of(training, batch()).backward()
    for name, parameter in training.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    grouped = [id(p) for group in training.parameter_groups("classifier") for p in group.parameters]
    assert sorted(grouped) == sorted(map(id, training.parameters()))


def test_every_layer_learns_slower_than_the_one_above(tokenizer: mergevq.MergeVQ) -> None:
    training = FineTuneTraining(tokenizer, FineTuneConfig(layer_decay=0.5), classes=3)
    model = training.model()
    groups = training.parameter_groups("classifier")
    rate = {id(p): group.rate_factor for group in groups for p in group.parameters}
    decays = {id(p): group.decays for group in groups for p in group.parameters}
    layers = [
        model.encoder.stem.conv_in.weight,
        *(b.mlp.fc1.weight for b in model.encoder.blocks),
        model.head.weight,
    ]
    assert rate[id(layers[-1])] == 1
    assert all(rate[id(low)] == 0.5 * rate[id(high)] for low, high in pairwise(layers))
    assert all(decays[id(p)] for p in layers)
    for spared in (model.encoder.summary_token, model.head.bias, model.norm.weight):
        assert not decays[id(spared)]
    assert layer_of("encoder.blocks.1.mlp.fc1.weight", 2) == 2


def test_fine_tuning_starts_from_the_tokenizer_and_leaves_it_alone(tokenizer: mergevq.MergeVQ) -> None:
    before = {name: value.clone() for name, value in tokenizer.encoder.state_dict().items()}
    training = FineTuneTraining(tokenizer, PLAIN, classes=3)
    images = batch()["image"]
    own = training.model().encoder(images, 16)
    torch.testing.assert_close(own.summary, tokenizer.encoder(images, 16).summary)
    torch.testing.assert_close(own.mean(), own.tokens.mean(1))  # of all tokens the mean is plain
    optimizer = torch.optim.AdamW(training.parameters(), lr=1e-2, weight_decay=0)
    losses = []
    for _ in range(40):
        losses.append(loss_of(training, batch()))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(before[name], value) for name, value in tokenizer.encoder.state_dict().items())


def test_the_mean_counts_a_kept_token_for_the_cells_it_stands_for(tokenizer: mergevq.MergeVQ) -> None:
    encoded = tokenizer.encoder(batch()["image"], 7)
    cells = torch.stack([t[a] for t, a in zip(encoded.tokens, encoded.source.assignment, strict=True)])
    torch.testing.assert_close(encoded.mean(), cells.mean(1))


@pytest.mark.parametrize("settings", [{"mixup": 0.8, "cutmix": 0}, {"mixup": 0, "cutmix": 1.0}])
def test_what_is_mixed_in_is_what_the_share_says(settings: dict[str, float]) -> None:
    images = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
    shares = []
    for seed in range(20):
        torch.manual_seed(seed)
        found, partners, share = mixed(images, torch.tensor([0, 1]), FineTuneConfig(**settings))
        assert partners.tolist() == [1, 0]
        assert float(found[1].mean()) == pytest.approx(share, abs=1e-6)
        assert float(found[0].mean()) == pytest.approx(1 - share, abs=1e-6)
        if settings["cutmix"]:
            assert set(found.unique().tolist()) <= {0.0, 1.0}
        shares.append(share)
    assert len(set(shares)) > 5
    assert images[0].max() == 0  # the batch itself is not written to


def test_mixing_is_a_function_of_the_seed_and_can_be_left_out() -> None:
    data = batch()
    torch.manual_seed(3)
    first = mixed(data["image"], data["label"], FineTuneConfig())
    torch.manual_seed(3)
    again = mixed(data["image"], data["label"], FineTuneConfig())
    assert torch.equal(first[0], again[0])
    assert first[2] == again[2]
    assert mixed(data["image"], data["label"], PLAIN)[2] == 1


def test_the_loss_is_the_cross_entropy_with_mixed_labels(tokenizer: mergevq.MergeVQ) -> None:
    settings = FineTuneConfig(cutmix=0, drop_path=0, label_smoothing=0.1)
    training, data = FineTuneTraining(tokenizer, settings, classes=3), batch()
    training.model().head.weight.data.normal_()
    torch.manual_seed(1)
    loss = loss_of(training, data)
    torch.manual_seed(1)
    images, partners, share = mixed(data["image"], data["label"], settings)
    targets = share * F.one_hot(data["label"], 3) + (1 - share) * F.one_hot(partners, 3)
    smoothed = targets * 0.9 + 0.1 / 3
    expected = -(training.model()(images).log_softmax(1) * smoothed).sum(1).mean()
    torch.testing.assert_close(loss, expected)


def test_an_export_comes_back(tokenizer: mergevq.MergeVQ, tmp_path: Path) -> None:
    model = fine_tuned(tokenizer, FineTuneConfig(keep=7), classes=3)
    training = FineTuneTraining(tokenizer, classes=3)
    training.export(model, tmp_path / "export")
    found = load_fine_tuned(tmp_path / "export")
    assert found.config.keep == 7
    images = batch()["image"]
    torch.testing.assert_close(found(images), model.eval()(images))
    with pytest.raises(InputError, match=r"classifier: .* holds no fine-tuned classifier"):
        load_fine_tuned(tmp_path)
    with pytest.raises(InputError, match="at least two classes"):
        FineTuneTraining(tokenizer, classes=1)
    with pytest.raises(InputError, match="drop_path"):
        parse(FineTuneConfig, {"drop_path": 1.0})
    assert isinstance(found.config, FineTunedConfig)


def test_dropped_paths_leave_whole_images_out_and_the_mean_alone() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.3).train()
    x = torch.ones(4000, 2, 3)
    found = drop(x)
    per_image = found.flatten(1)
    assert ((per_image == 0).all(1) | (per_image == per_image[:, :1]).all(1)).all()
    assert float(found.mean()) == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(x), x)
    block = MergeBlock(8, 2).train()
    state = torch.get_rng_state()
    block(x[:1, :, :1].expand(1, 2, 8), None, 0)
    assert torch.equal(torch.get_rng_state(), state)  # a rate of 0 draws nothing


def test_a_probe_trains_heads_at_their_own_rates_and_nothing_of_the_tokenizer(
    tokenizer: mergevq.MergeVQ,
) -> None:
    training = ProbeTraining(tokenizer, ProbeTrainingConfig(rate_factors=(1.0, 0.1)), classes=3)
    trainable = [name for name, p in training.named_parameters() if p.requires_grad]
    assert all(".heads." in name for name in trainable)
    assert all(".heads." in name for name in training.resume_state())
    loss_of(training.train(), batch()).backward()
    assert not training.phases["probe"].tokenizer.tokenizer.training
    groups = training.parameter_groups("probe")
    assert [group.rate_factor for group in groups] == [1.0, 1.0, 0.1, 0.1]
    assert [group.decays for group in groups] == [True, False, True, False]
    assert sum(len(group.parameters) for group in groups) == len(trainable)
    for name, parameter in training.named_parameters():
        assert (parameter.grad is not None) == (".heads." in name)


def test_other_trainings_decay_weights_alone(tokenizer: mergevq.MergeVQ) -> None:
    from mergevq.teachers.stand_in import StandInClassifier, StandInConfig
    from mergevq.training.classifier import ClassifierTraining

    training = ClassifierTraining(StandInClassifier(StandInConfig(classes=2, width=8)))
    decayed, spared = training.parameter_groups("classifier")
    assert (decayed.decays, spared.decays) == (True, False)
    assert all(p.ndim >= 2 for p in decayed.parameters)
    assert all(p.ndim < 2 for p in spared.parameters)
    assert len(decayed.parameters) + len(spared.parameters) == len(list(training.parameters()))
