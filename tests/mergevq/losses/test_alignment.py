import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mergevq.config import config, parse
from mergevq.ema import RunningMean, move_towards
from mergevq.errors import InputError
from mergevq.losses.alignment import (
    AlignmentConfig,
    NoAlignmentConfig,
    Prototypes,
    SelfAlignmentConfig,
    StandInAlignmentConfig,
    SupervisedAlignmentConfig,
    TimmAlignmentConfig,
    feature_rank,
    feature_std,
    matching_loss,
    self_distillation_loss,
)


@pytest.mark.parametrize("kind", ["kl", "mse", "cosine"])
def test_matching_is_zero_for_equal_features_and_positive_otherwise(kind):
    a, b = torch.randn(2, 4, 6).unbind()
    assert matching_loss(kind, 10 * a, 10 * a, 4.0).abs() < 1e-3
    assert matching_loss(kind, a, b, 4.0) > 0.01


def test_the_kl_is_that_of_the_softened_distributions_times_temperature_squared():
    student, teacher = torch.randn(2, 3, 5).unbind()
    p, q = (teacher / 4).softmax(-1), (student / 4).softmax(-1)
    expected = 16 * (p * (p.log() - q.log())).sum(-1).mean()
    torch.testing.assert_close(matching_loss("kl", student, teacher, 4.0), expected)


def test_feature_statistics_tell_collapsed_from_spread_features():
    torch.manual_seed(0)
    spread = torch.randn(256, 16)
    assert 0.95 < feature_std(spread) < 1.05
    assert 14 < feature_rank(spread) <= 16
    same = torch.randn(1, 16).expand(256, 16)
    assert feature_std(same) < 1e-3
    assert feature_rank(same) < 1e-3
    line = torch.randn(256, 1) * torch.randn(1, 16)
    assert math.isclose(feature_rank(line).item(), 1, abs_tol=1e-3)


def test_feature_rank_is_the_participation_ratio_of_the_covariance():
    features = torch.randn(40, 8, dtype=torch.float64) * torch.arange(1, 9)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(features.T))
    expected = eigenvalues.sum() ** 2 / eigenvalues.square().sum()
    torch.testing.assert_close(feature_rank(features).double(), expected, rtol=1e-4, atol=1e-4)


def test_the_self_distillation_loss_follows_its_formula_and_ignores_the_teachers_gradient():
    term = SelfAlignmentConfig(prototypes=6)
    student = torch.randn(3, 6, requires_grad=True)
    teacher = torch.randn(3, 6, requires_grad=True)
    centre = torch.randn(6)
    loss = self_distillation_loss(term, student, teacher, centre)
    p = ((teacher - centre) / 0.04).softmax(-1)
    torch.testing.assert_close(loss, -(p * (student / 0.1).softmax(-1).log()).sum(-1).mean())
    loss.backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def _distil(objective: str, steps: int = 120) -> nn.Module:
    """Train a small network on noisy views of random data by self-distillation; returns it."""
    torch.manual_seed(0)
    term = SelfAlignmentConfig(prototypes=32, momentum=0.9)
    student = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 8))
    prototypes = Prototypes(8, term.prototypes, seed=0)
    teacher, teacher_prototypes = copy.deepcopy(student), copy.deepcopy(prototypes)
    centre = RunningMean((term.prototypes,), term.centre_momentum)
    optimizer = torch.optim.AdamW([*student.parameters(), *prototypes.parameters()], lr=5e-3)
    for _ in range(steps):
        data = torch.randn(64, 16)
        views = [data + 0.5 * torch.randn(64, 16) for _ in range(2)]
        features = student(views[0])
        with torch.no_grad():
            target = teacher(views[1])
            logits = teacher_prototypes(target)
        if objective == "centred":
            loss = self_distillation_loss(term, prototypes(features), logits, centre.value)
            centre.observe(logits.mean(0), len(logits))
        else:
            loss = F.mse_loss(features, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        centre.fold()
        move_towards(teacher, student, 1 - term.momentum)
        move_towards(teacher_prototypes, prototypes, 1 - term.momentum)
    return student


def test_self_distillation_does_not_collapse_where_the_naive_form_does():
    held_out = torch.randn(256, 16, generator=torch.Generator().manual_seed(1))
    spreads = {}
    for objective in ("centred", "naive"):
        features = _distil(objective)(held_out).detach()
        spreads[objective] = (features.std(0).mean().item(), feature_rank(features).item())
        if objective == "centred":
            assert feature_std(features) > 0.7
    assert spreads["centred"][1] > 3
    assert spreads["naive"][0] < 0.1 * spreads["centred"][0]


def test_the_views_needed_follow_the_term():
    assert NoAlignmentConfig().views_needed(256) == (None, None)
    assert TimmAlignmentConfig(hub=True).views_needed(256) == (224, 224)
    assert TimmAlignmentConfig(hub=True).views_needed(128) == (112, 224)
    assert TimmAlignmentConfig(hub=True).views_needed(64) == (64, 224)
    assert SelfAlignmentConfig().views_needed(64) == (64, 64)
    assert SelfAlignmentConfig(student_size=48).views_needed(64) == (48, 64)
    assert SupervisedAlignmentConfig(classes=3).views_needed(64) == (64, None)
    assert StandInAlignmentConfig(directory="x").views_needed(32) == (32, 32)


@config
class _Holder:
    alignment: AlignmentConfig = NoAlignmentConfig()


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"kind": "self", "teacher_temperature": 0.2}, "not sharper collapses"),
        ({"kind": "timm"}, "needs weights"),
        ({"kind": "stand_in"}, "missing key 'alignment.directory'"),
        ({"kind": "supervised"}, "missing key 'alignment.classes'"),
        ({"kind": "none", "weight": 1.0}, "alignment.weight"),
    ],
)
def test_an_impossible_alignment_is_refused_with_its_reason(tree, words):
    with pytest.raises(InputError, match=words):
        parse(_Holder, {"alignment": tree})


@pytest.mark.parametrize("length", [1e-9, 1e-4, 1.0, 20.0])
def test_matching_features_of_a_new_head_has_bounded_gradients(length):
    student = (F.normalize(torch.randn(4, 8), dim=-1) * length).requires_grad_()
    matching_loss("cosine", student, torch.randn(4, 8), 4.0).backward()
    assert student.grad.norm(dim=-1).max() <= 10 / 4 + 1e-4
    assert student.grad.abs().sum() > 0


def test_features_of_usual_length_are_compared_by_their_cosine():
    a, b = torch.randn(2, 16, 64).unbind()
    torch.testing.assert_close(
        matching_loss("cosine", a, b, 4.0), 1 - F.cosine_similarity(a, b).mean(), rtol=1e-3, atol=1e-3
    )
