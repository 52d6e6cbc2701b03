import pytest
import torch
from torch import nn

from mergevq.ema import Ema, RunningMean, move_towards


def _with_buffer() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_the_average_is_the_weighted_sum_of_all_weights_seen():
    module = nn.Linear(2, 1, bias=False)
    seen = [torch.randn(1, 2) for _ in range(5)]
    with torch.no_grad():
        module.weight.copy_(seen[0])
    ema = Ema(module, 0.9)
    for weight in seen[1:]:
        with torch.no_grad():
            module.weight.copy_(weight)
        ema.update()
    expected = 0.9**4 * seen[0] + 0.1 * sum(0.9 ** (4 - i) * seen[i] for i in range(1, 5))
    torch.testing.assert_close(ema.averaged.weight, expected)


def test_buffers_are_copied_and_not_averaged():
    module = _with_buffer()
    ema = Ema(module, 0.99)
    module(torch.randn(8, 3))
    ema.update()
    torch.testing.assert_close(ema.averaged[1].running_mean, module[1].running_mean, rtol=0, atol=0)
    assert ema.averaged[1].num_batches_tracked == 1


def test_the_averaged_module_takes_no_gradient_and_stays_apart_from_the_trained_one():
    module = _with_buffer()
    ema = Ema(module, 0.5)
    before = ema.averaged[0].weight.clone()
    with torch.no_grad():
        module[0].weight.add_(1)
    assert not any(parameter.requires_grad for parameter in ema.averaged.parameters())
    assert not ema.averaged.training
    torch.testing.assert_close(ema.averaged[0].weight, before, rtol=0, atol=0)


def test_warm_up_forgets_the_initial_weights_sooner():
    distances = []
    for warmup in (False, True):
        module = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(module.weight)
        ema = Ema(module, 0.999, warmup=warmup)
        nn.init.ones_(module.weight)
        for _ in range(20):
            ema.update()
        distances.append(1 - ema.averaged.weight.item())
    assert distances[1] < 0.01 < 0.9 < distances[0]


def test_a_restored_average_goes_on_bit_for_bit():
    module = _with_buffer()
    one, two = Ema(module, 0.9, warmup=True), Ema(_with_buffer(), 0.9, warmup=True)
    for step in range(6):
        with torch.no_grad():
            module[0].weight.add_(0.1 * step)
        one.update()
        if step == 3:
            two.load_state_dict(one.state_dict())
            two.module = module
        elif step > 3:
            two.update()
    assert two.num_updates == one.num_updates == 6
    assert all(torch.equal(one.state_dict()[name], two.state_dict()[name]) for name in one.state_dict())


def test_a_part_of_a_module_can_follow_the_same_part_of_a_larger_one():
    large = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    small = nn.ModuleDict({"a": nn.Linear(2, 2)})
    move_towards(small, large, 1.0)
    torch.testing.assert_close(small["a"].weight, large["a"].weight)


def test_a_running_mean_counts_every_image_of_a_step_once():
    split, whole = RunningMean((2,), 0.5), RunningMean((2,), 0.5)
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0], [2.0, 4.0]])
    for _ in range(3):
        split.observe(rows[0], 1)
        split.observe(rows[1:].mean(0), 2)
        whole.observe(rows.mean(0), 3)
        split.fold()
        whole.fold()
    torch.testing.assert_close(split.value, whole.value)
    torch.testing.assert_close(split.value, torch.tensor([2.0, 4.0]) * (1 - 0.5**3))


def test_a_running_mean_without_observations_stays():
    mean = RunningMean((1,), 0.5)
    mean.observe(torch.ones(1), 4)
    mean.fold()
    before = mean.value.clone()
    mean.fold()
    assert torch.equal(mean.value, before)
    assert list(mean.state_dict()) == ["value"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_no_part_of_a_running_mean(value):
    mean, clean = RunningMean((2,), 0.5), RunningMean((2,), 0.5)
    for average in (mean, clean):
        average.observe(torch.tensor([1.0, 2.0]), 3)
    mean.observe(torch.tensor([1.0, value]), 5)
    mean.fold()
    clean.fold()
    assert torch.equal(mean.value, clean.value)
    mean.observe(torch.tensor([value, 1.0]), 1)  # alone in its step
    mean.fold()
    assert torch.equal(mean.value, clean.value)
