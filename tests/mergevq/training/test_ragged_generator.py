"""Training on images of different kept counts: padding changes no image's loss, and a batch of one count is that of before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mergevq.errors import InputError
from mergevq.generation import parse_generator
from mergevq.training.generator import GeneratorPhase, GeneratorTraining

COUNTS = (4, 16, 9, 4, 9)
KINDS = ("mergear", "random_order")


def ragged_batch(counts: tuple[int, ...] = COUNTS, width: int = 16, fill: int = -1) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    indices = torch.full((len(counts), width), fill)
    assignment = torch.empty(len(counts), 16, dtype=torch.int64)
    for row, keep in enumerate(counts):
        indices[row, :keep] = torch.randint(0, 64, (16,), generator=random)[:keep]
        others = torch.randint(0, 2**31, (16,), generator=random)[: 16 - keep] % keep
        assignment[row] = torch.cat([torch.arange(keep), others])
    labels = torch.arange(len(counts)) % 3
    return {"indices": indices, "assignment": assignment, "label": labels, "count": torch.tensor(counts)}


def of_rows(batch: dict[str, Tensor], rows: list[int], width: int | None = None) -> dict[str, Tensor]:
    chosen = {name: value[rows] for name, value in batch.items()}
    return {**chosen, "indices": chosen["indices"][:, :width]}


def loss(phase: GeneratorPhase, batch: dict[str, Tensor], keep: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(3)  # one order of decoding for batches of one shape
    output = phase(batch, {}, keep=keep, step=0)
    return {**output.losses, "differentiable": output.total}


@pytest.fixture
def phase(random_generator: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], GeneratorPhase]:
    def made(kind: str) -> GeneratorPhase:
        training = GeneratorTraining(random_generator(kind, {"ragged": True})).eval()
        found = training.phases["generator"]
        assert isinstance(found, GeneratorPhase)
        return found

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_padded_changes_no_loss_and_no_gradient(kind: str, phase: Callable) -> None:
    model, found = phase(kind), []
    for fill in (-1, 0, 63):
        model.zero_grad()
        losses = loss(model, ragged_batch(fill=fill))
        losses["differentiable"].backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        found.append([*losses.values(), *gradients])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_is_the_mean_over_its_images_each_as_if_it_were_alone(
    kind: str, phase: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = phase(kind), ragged_batch()
    # The order of an image must not depend on the batch here.
    monkeypatch.setattr(
        torch, "rand", lambda shape, **_: (torch.arange(shape[1]) * 7 % 17).expand(shape) / 17
    )
    whole = loss(model, batch)
    alone = [
        loss(model, {k: v for k, v in of_rows(batch, [row], keep).items() if k != "count"}, keep)
        for row, keep in enumerate(COUNTS)
    ]
    for name, value in whole.items():
        mean = torch.stack([losses[name] for losses in alone]).double().mean()
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-6)
    assert float(whole["kept_tokens"]) == pytest.approx(sum(COUNTS) / len(COUNTS))
    wider = loss(model, ragged_batch(COUNTS[:1] + COUNTS[2:]))
    trimmed = loss(model, ragged_batch(COUNTS[:1] + COUNTS[2:], width=9))
    for name in whole:
        torch.testing.assert_close(wider[name], trimmed[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_count_has_the_loss_of_a_generator_that_is_told_one(
    kind: str, phase: Callable, random_generator: Callable
) -> None:
    batch = {name: value for name, value in ragged_batch((9,) * 5, width=9).items() if name != "count"}
    before = GeneratorTraining(random_generator(kind)).eval().phases["generator"]
    given = loss(before, batch, 9)
    found = loss(phase(kind), batch)
    assert found.keys() - given.keys() == {"kept_tokens"}
    assert all(torch.equal(found[name], value) for name, value in given.items()), "bit for bit"


@pytest.mark.parametrize("positions", ["rank", "stretched"])
def test_a_kept_token_stands_where_it_stands_in_a_batch_of_its_count(
    positions: str, random_generator: Callable
) -> None:
    generator = random_generator("random_order", {"positions": positions}).float()
    counts = torch.tensor([4, 9, 16])
    table = generator.kept_rotation(counts, 16)
    for row, keep in enumerate(counts.tolist()):
        assert torch.equal(table[row, :keep], generator.kept_rotation(keep))


def test_an_order_holds_every_kept_token_of_an_image_before_what_is_padded(
    random_generator: Callable,
) -> None:
    generator, batch = random_generator("random_order"), ragged_batch()
    prediction = generator(batch["indices"], None, batch["label"], batch["count"])
    for row, keep in enumerate(COUNTS):
        targets = prediction.targets[row]
        assert prediction.present[row].tolist() == [True] * keep + [False] * (16 - keep)
        assert targets[:keep].sort().values.tolist() == batch["indices"][row, :keep].sort().values.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_count_that_was_not_trained_is_refused_in_any_row(kind: str, random_generator: Callable) -> None:
    batch = ragged_batch()
    batch["count"][2] = 10
    with pytest.raises(InputError, match="keep is 10: this generator was trained with 4, 9, 16"):
        random_generator(kind)(*batch.values())


def test_a_ragged_generator_needs_several_counts(random_generator: Callable) -> None:
    from mergevq.config import merged, to_tree
    from mergevq.generation import generator_preset

    tree = to_tree(generator_preset("test_mergear"))
    assert "ragged" not in tree, "the tree of a generator of one count a batch is that of before"
    with pytest.raises(InputError, match=r"keeps \[9\] is one count"):
        parse_generator(merged(tree, {"keeps": [9], "ragged": True}))
