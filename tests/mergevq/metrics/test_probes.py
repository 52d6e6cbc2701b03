"""The linear probe against scikit-learn, nearest neighbours against brute force."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mergevq.errors import InputError
from mergevq.metrics import knn_classify, knn_votes, linear_probe
from mergevq.metrics.knn import TEMPERATURE
from mergevq.metrics.labelled import held_out_part, unfit_labels, wilson_interval
from mergevq.metrics.logistic import fit_logistic
from mergevq.metrics.probe import C_GRID, standardised, uncorrelated
from mergevq.metrics.sgd_probe import SgdProbeConfig, sgd_probe


def problem(images, dim=12, classes=4, separation=1.0, seed=0):
    """Badly scaled, correlated Gaussian classes with an offset: features as encoders give them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images,), generator=generator)
    centres = separation * torch.randn(classes, dim, generator=generator)
    x = (torch.randn(images, dim, generator=generator) + centres[labels]) * torch.logspace(-2, 1, dim)
    mix = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    return x @ mix + 5, labels


def quick_sgd_probe(*features_and_labels):
    return sgd_probe(*features_and_labels, SgdProbeConfig(epochs=2, batch=64))


def split(x, y, at):
    return x[:at], y[:at], x[at:], y[at:]


def objective(weights, x, y, C):
    weights, x = weights.double(), x.double()
    log_odds = (x @ weights[:-1] + weights[-1]).log_softmax(1)
    return float(-C * log_odds[torch.arange(len(y)), y].sum() + 0.5 * weights[:-1].square().sum())


@pytest.mark.parametrize("C", C_GRID)
def test_the_probe_reaches_the_optimum_of_scikit_learn(C):
    x, y = problem(400)
    x, _ = uncorrelated(*standardised(x, x))
    found = fit_logistic(x, y, 4, C).weights
    theirs = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(x.double().numpy(), y.numpy())
    their_weights = torch.from_numpy(np.vstack([theirs.coef_.T, theirs.intercept_]))
    assert objective(found, x, y, C) == pytest.approx(objective(their_weights, x, y, C), rel=1e-3)
    agreement = (x @ found[:-1] + found[-1]).argmax(1) == torch.from_numpy(theirs.predict(x.numpy()))
    assert agreement.double().mean() > 0.99


def test_features_turned_to_their_axes_have_the_same_optimum():
    x, y = problem(300)
    x, _ = standardised(x, x)
    turned, _ = uncorrelated(x, x)
    correlation = turned.T @ turned / len(turned)
    assert (correlation - correlation.diagonal().diag()).abs().max() < 1e-4
    values = [objective(fit_logistic(part, y, 4, 0.1).weights, part, y, 0.1) for part in (x, turned)]
    assert values[0] == pytest.approx(values[1], rel=1e-4)


def test_a_start_changes_the_way_but_not_the_optimum():
    x, y = problem(300)
    x, _ = uncorrelated(*standardised(x, x))
    far = fit_logistic(x, y, 4, 100.0)
    cold, warm = fit_logistic(x, y, 4, 0.1), fit_logistic(x, y, 4, 0.1, start=far)
    assert objective(cold.weights, x, y, 0.1) == pytest.approx(objective(warm.weights, x, y, 0.1), rel=1e-4)


def test_the_whole_grid_reaches_its_optima_one_from_the_other():
    x, y = problem(500, dim=40, classes=6, separation=0.6)
    x, _ = uncorrelated(*standardised(x, x))
    solution = None
    for C in C_GRID:
        solution = fit_logistic(x, y, 6, C, start=solution)
        exact = fit_logistic(x, y, 6, C, tolerance=1e-9)
        found, least = (objective(s.weights, x, y, C) for s in (solution, exact))
        assert found == pytest.approx(least, rel=2e-4)


def test_clear_classes_are_all_found_and_noise_none():
    x, y = problem(600, separation=8)
    result = linear_probe(*split(x, y, 400))
    assert result.top1 == 100
    assert result.interval[0] > 97
    assert (result.train_images, result.classes, result.held_out_top1) == (400, 4, 100)
    x, y = problem(600, separation=0)
    assert linear_probe(*split(x, y, 400)).top1 < 40


def test_the_probe_does_not_depend_on_scale_and_offset_of_features():
    x, y = problem(500)
    plain = linear_probe(*split(x, y, 400))
    moved = linear_probe(*split(x.double() * 1e-3 + 7, y, 400))
    assert abs(plain.top1 - moved.top1) <= 1
    assert plain.C == moved.C


def test_the_probe_is_deterministic_and_leaves_its_arguments_alone():
    x, y = problem(300)
    copy = x.clone()
    with torch.inference_mode():
        first = linear_probe(*split(x, y, 200))
    assert first == linear_probe(*split(x, y, 200))
    assert torch.equal(x, copy)


def test_c_is_chosen_without_the_test_set():
    train_x, train_y, test_x, test_y = split(*problem(300), 200)
    honest = linear_probe(train_x, train_y, test_x, test_y)
    wrong = linear_probe(train_x, train_y, -test_x, (test_y + 1) % 4)
    assert (honest.C, honest.held_out_top1) == (wrong.C, wrong.held_out_top1)
    assert honest.top1 != wrong.top1
    neighbours = knn_classify(train_x, train_y, test_x, test_y)
    assert neighbours.k == knn_classify(train_x, train_y, -test_x, (test_y + 1) % 4).k


def test_a_constant_feature_does_no_harm():
    x, y = problem(300)
    with_constant = torch.cat([x, torch.full((300, 1), 1 / 3)], 1)
    with_constant[200:, -1] = 1000.0  # even where it changes after training
    plain, constant = linear_probe(*split(x, y, 200)), linear_probe(*split(with_constant, y, 200))
    assert plain.top1 == constant.top1


def test_labels_need_not_be_contiguous_and_unknown_classes_are_wrong():
    x, y = problem(300)
    plain = linear_probe(*split(x, y, 200))
    spread = linear_probe(*split(x, y * 10 + 3, 200))
    assert plain.top1 == spread.top1
    unknown = linear_probe(x[:200], y[:200], x[200:], torch.full((100,), 77))
    assert unknown.top1 == 0
    assert knn_classify(x[:200], y[:200], x[200:], torch.full((100,), 77)).top1 == 0


def test_every_class_is_held_out_in_its_share():
    y = torch.tensor([0] * 50 + [1] * 5 + [2] * 3 + [3])
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(0))]
    mask = held_out_part(y)
    assert torch.bincount(y[mask], minlength=4).tolist() == [10, 1, 1, 0]


@pytest.mark.parametrize("probe", [linear_probe, knn_classify])
def test_problems_without_sense_are_refused(probe):
    x, y = problem(60)
    with pytest.raises(InputError, match="one class"):
        probe(x, torch.zeros_like(y), x, y)
    with pytest.raises(InputError, match="no class of the train set has two"):
        probe(x[:5], torch.arange(5), x, y)
    nan = x.clone()
    nan[3, 2] = torch.nan
    with pytest.raises(InputError, match="test features hold NaN"):
        probe(x, y, nan, y)
    with pytest.raises(InputError, match="train features hold NaN"):
        probe(nan, y, x, y)
    with pytest.raises(InputError, match="none of the test images has a label"):
        probe(x, y, x, torch.full_like(y, -1))
    with pytest.raises(InputError, match="must be integers"):
        probe(x, y.float(), x, y)
    with pytest.raises(InputError, match="12 numbers and test features 11"):
        probe(x, y, x[:, :11], y)
    with pytest.raises(InputError, match="B at least 1"):
        probe(x, y, x[:0], y[:0])


@pytest.mark.parametrize("probe", [linear_probe, knn_classify, quick_sgd_probe])
@pytest.mark.parametrize("none", [-1, -100])
def test_images_without_a_label_are_as_if_they_were_not_there(probe, none):
    train_x, train_y, test_x, test_y = split(*problem(300), 200)
    expected = probe(train_x, train_y, test_x, test_y)
    odd = torch.arange(200) % 5 == 2
    many_x, many_y = train_x.repeat_interleave(1 + odd, 0), train_y.repeat_interleave(1 + odd, 0)
    unlabelled = torch.cat([torch.tensor([False, True]) if o else torch.tensor([False]) for o in odd])
    many_x = torch.where(unlabelled[:, None], torch.nan, many_x)  # whatever their features are
    many_y = torch.where(unlabelled, none, many_y)
    test_x, test_y = torch.cat([test_x, 9 * test_x]), torch.cat([test_y, torch.full_like(test_y, none)])
    assert probe(many_x, many_y, test_x, test_y) == expected


def test_why_labels_make_no_probe_is_said_in_words():
    y = torch.tensor([0, 0, 1, 1, 5])
    none, one, each = torch.full((5,), -1), torch.tensor([3, 3, -1, -1, -1]), torch.arange(5)
    assert unfit_labels(y, y) is None
    assert unfit_labels(y, torch.tensor([0, 7])) is None, "a class of its own is answered wrong"
    assert unfit_labels(none, y) == "none of the train images has a label"
    assert unfit_labels(y, none) == "none of the test images has a label"
    assert "the train set holds one class (2 labelled images)" in str(unfit_labels(one, y))
    assert "the test set holds one class" in str(unfit_labels(y, one))
    assert "no class of the train set has two images" in str(unfit_labels(each, y))


def test_the_interval_is_wilsons():
    assert wilson_interval(50, 100) == pytest.approx((40.383, 59.617), abs=1e-3)  # published tables
    low, high = wilson_interval(100, 20)
    assert (low, high) == (pytest.approx(83.887, abs=1e-3), 100)
    assert wilson_interval(0, 20)[0] == 0


def brute_force(train_x, train_y, test_x, test_y, k):
    right = 0
    for x, y in zip(test_x.double(), test_y, strict=True):
        cosines = [float(x @ t / (x.norm() * t.norm())) for t in train_x.double()]
        votes = [0.0] * (int(train_y.max()) + 1)
        for cosine, label in sorted(zip(cosines, train_y.tolist(), strict=True), reverse=True)[:k]:
            votes[label] += math.exp(cosine / TEMPERATURE)
        right += votes.index(max(votes)) == int(y)
    return 100 * right / len(test_y)


@pytest.mark.parametrize(("seed", "k"), [(0, 10), (1, 20), (2, 100)])
def test_neighbours_vote_as_in_brute_force(seed, k):
    x, y = problem(160, separation=1.0, seed=seed)
    x = x - 5
    data = split(x, y, 130)
    result = knn_classify(*data)
    assert result.top1 == pytest.approx(brute_force(*data, result.k))
    held_out = held_out_part(data[1])
    inner = (data[0][~held_out], data[1][~held_out], data[0][held_out], data[1][held_out])
    scores = {k: brute_force(*inner, k) for k in (10, 20, 100)}  # 200 neighbours are more than there are
    assert result.k == max(scores, key=scores.get) == k


def test_chunks_change_nothing_and_small_sets_vote_whole():
    data = split(*problem(260), 200)
    assert knn_classify(*data) == knn_classify(*data, chunk=7)
    for shares in (2, 5, 7):
        votes = [knn_votes(*data, share=(index, shares)) for index in range(shares)]
        merged = votes[-1]
        for part in votes[:-1]:  # in another order
            merged = merged.merge(part)
        assert merged.result() == knn_classify(*data)
    assert knn_classify(*split(*problem(30), 8)).k <= 8
