"""Probes by stochastic gradients, and neighbours in shards: the same answers as by other ways."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq.metrics import Nearest, SgdProbeConfig, knn_classify, sgd_probe
from mergevq.metrics.sgd_probe import PUBLISHED, ProbeHeads, Standardise, heads_optimizer, set_rates


def problem(
    images: int, *, dim: int = 12, classes: int = 4, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images,), generator=generator)
    centres = 1.5 * torch.randn(classes, dim, generator=generator)
    return (torch.randn(images, dim, generator=generator) + centres[labels]) * 3 + 5, labels


def parts(at: int = 400, images: int = 600) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, y = problem(images)
    return x[:at], y[:at], x[at:], y[at:]


QUICK = SgdProbeConfig(batch=64, epochs=30, learning_rates=(1e-2,))


def test_the_published_recipe_learns_what_scikit_learn_learns() -> None:
    train_x, train_y, test_x, test_y = parts()
    found = sgd_probe(train_x, train_y, test_x, test_y, QUICK)
    mean, std = train_x.mean(0), train_x.std(0)
    exact = LogisticRegression(C=10).fit((train_x - mean) / std, train_y)
    assert found.top1 == pytest.approx(100 * exact.score((test_x - mean) / std, test_y), abs=2)
    assert (found.train_images, found.classes, found.held_out_top1) == (400, 4, {})
    assert found.interval[0] < found.top1 < found.interval[1]


def test_the_defaults_are_the_papers() -> None:
    paper = PUBLISHED["mergevq"]
    assert (paper.optimizer, paper.epochs, paper.batch, paper.learning_rates) == ("adamw", 90, 1024, (1e-3,))
    assert PUBLISHED["mae"].rate(0) == pytest.approx(6.4)
    for settings in PUBLISHED.values():
        assert parse(SgdProbeConfig, to_tree(settings)) == settings


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_heads_trained_together_are_those_trained_alone(name: str) -> None:
    x, y = problem(96)
    rates = (1e-3, 1e-2, 0.1)
    settings = SgdProbeConfig(optimizer=name, learning_rates=rates, epochs=2, batch=32, weight_decay=0.01)

    def trained(heads: ProbeHeads, settings: SgdProbeConfig) -> ProbeHeads:
        optimizer = heads_optimizer(heads, settings)
        for step in range(6):
            set_rates(optimizer, settings, step, 3)
            rows = torch.arange(step % 3 * 32, step % 3 * 32 + 32)
            heads.losses(heads(x[rows]), y[rows]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return heads

    torch.manual_seed(0)
    start = ProbeHeads(12, 4, 3)
    together = trained(copy.deepcopy(start), settings)
    for index, rate in enumerate(rates):
        alone = ProbeHeads(12, 4, 1)
        alone.weights[0].data.copy_(start.weights[index])
        alone = trained(alone, SgdProbeConfig(**(to_tree(settings) | {"learning_rates": (rate,)})))
        torch.testing.assert_close(alone.weights[0], together.weights[index], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone.biases[0], together.biases[index], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(together.weights[0], together.weights[1])


def test_the_normalisation_is_batch_norm_without_parameters() -> None:
    ours, theirs = Standardise(12), nn.BatchNorm1d(12, affine=False, eps=1e-6)
    for seed in range(3):
        x, _ = problem(50, seed=seed)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.mean, theirs.running_mean, rtol=1e-4, atol=1e-5)
    # PyTorch's running variance is unbiased, that of the batch is not; ours has one meaning.
    torch.testing.assert_close(ours.variance, theirs.running_var, rtol=0.03, atol=0)
    frozen = ours.eval()(x)
    torch.testing.assert_close(frozen, (x - ours.mean) / (ours.variance + 1e-6).sqrt())


def test_the_rate_is_chosen_on_held_out_train_and_never_on_test() -> None:
    train_x, train_y, test_x, test_y = parts()
    settings = SgdProbeConfig(batch=64, epochs=10, learning_rates=(1e-2, 1e-6), optimizer="sgd")
    found = sgd_probe(train_x, train_y, test_x, test_y, settings)
    wrong = sgd_probe(train_x, train_y, -test_x, (test_y + 1) % 4, settings)
    assert (found.learning_rate, found.held_out_top1) == (wrong.learning_rate, wrong.held_out_top1)
    assert found.learning_rate == 1e-2
    assert found.held_out_top1[1e-2] > found.held_out_top1[1e-6]
    assert found == sgd_probe(train_x, train_y, test_x, test_y, settings)


def test_unlabelled_rows_move_nothing() -> None:
    x, y = problem(20)
    heads = ProbeHeads(12, 4, 2).eval()
    labelled = heads.losses(heads(x[:15]), y[:15])
    y[15:] = -1
    torch.testing.assert_close(heads.losses(heads(x), y), labelled)
    expected = F.cross_entropy(heads(x[:15])[1], y[:15])
    torch.testing.assert_close(labelled[1], expected)


def test_probes_without_sense_are_refused() -> None:
    x, y = problem(40)
    with pytest.raises(InputError, match="one class"):
        sgd_probe(x, torch.zeros_like(y), x, y, QUICK)
    with pytest.raises(InputError, match="NaN"):
        sgd_probe(x / 0 * 0, y, x, y, QUICK)
    with pytest.raises(InputError, match="names a rate twice"):
        parse(SgdProbeConfig, {"learning_rates": [0.1, 0.1]})
    with pytest.raises(InputError, match="learning_rates"):
        parse(SgdProbeConfig, {"learning_rates": []})


def shards(
    x: torch.Tensor, y: torch.Tensor, queries: torch.Tensor, sizes: list[int], k: int
) -> list[Nearest]:
    found, first = [], 0
    for size in sizes:
        part = Nearest(queries, k=k)
        part.update(x[first : first + size], y[first : first + size], first, chunk=7)
        found.append(pickle.loads(pickle.dumps(part)))  # as from another process
        first += size
    return found


@pytest.mark.parametrize("sizes", [[130], [50, 80], [1, 99, 5, 25], [3, 127]])
def test_shards_of_train_have_the_neighbours_of_the_whole(sizes: list[int]) -> None:
    # Four entries of 1 or -1 have length 2: cosines are exact in whatever order they are summed, and many are equal.
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(160, 8).scatter_(1, torch.rand(160, 8, generator=generator).argsort(dim=1)[:, :4], 1)
    x *= torch.randint(0, 2, x.shape, generator=generator) * 2 - 1
    y = torch.randint(0, 4, (160,), generator=generator)
    bank, labels, queries, answers = x[:130], y[:130], x[130:], y[130:]
    ks = [1, 10, 20, 100]
    merged, *others = reversed(shards(bank, labels, queries, sizes, 100))
    for other in others:
        merged = merged.merge(other)
    cosines = F.normalize(queries.double()) @ F.normalize(bank.double()).T
    order = (-cosines).argsort(dim=1, stable=True)[:, :100]  # of equals the lower position, wherever it was
    assert merged.labels.tolist() == labels[order].tolist()
    for k, right in zip(ks, merged.right(answers, ks, 4).tolist(), strict=True):
        votes = torch.zeros(len(queries), 4).double()
        votes.scatter_add_(1, labels[order[:, :k]], (cosines.gather(1, order[:, :k]) / 0.07).exp())
        assert right == int((votes.argmax(1) == answers).sum())


def test_all_ks_are_answered_at_once_and_the_reported_one_is_the_chosen() -> None:
    train_x, train_y, test_x, test_y = parts()
    found = knn_classify(train_x - 5, train_y, test_x - 5, test_y)
    assert list(found.by_k) == [10, 20, 100, 200]
    assert found.by_k[found.k] == found.top1


def test_neighbours_that_do_not_belong_together_do_not_merge() -> None:
    x, y = problem(30)
    one = Nearest(x, k=5)
    with pytest.raises(InputError, match="do not merge"):
        one.merge(Nearest(x, k=6))
    with pytest.raises(InputError, match="queries"):
        one.update(x[:, :3], y, 0)
    one.update(x[:3], y[:3], 0)
    with pytest.raises(InputError, match="4 neighbours were asked for but only 3 kept"):
        one.right(y, [4], 4)
