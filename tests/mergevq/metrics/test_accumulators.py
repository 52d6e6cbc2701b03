"""Codes, recovery, pixels and means: their values, and that any split of the images gives the same."""

import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mergevq.errors import InputError
from mergevq.metrics import CodeUsage, FeatureStatistics, Mean, Psnr, RecoveryAccuracy, Ssim, to_uint8
from mergevq.metrics.frechet import frechet_distance


def random_images(count, height=16, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    true = torch.rand(count, 3, height, width, generator=generator) * 2 - 1
    return true, true + 0.3 * torch.randn(true.shape, generator=generator)


def updates(kind, count, seed):
    """An empty accumulator's maker, and arguments of one update that a slice of images can be taken of."""
    generator = torch.Generator().manual_seed(seed)
    match kind:
        case "psnr":
            return Psnr, random_images(count, seed=seed)
        case "ssim":
            return Ssim, random_images(count, seed=seed)
        case "codes":
            return lambda: CodeUsage(32), (torch.randint(0, 32, (count, 5), generator=generator),)
        case "recovery":
            slots = torch.randint(0, 7, (2, count, 9), generator=generator)
            return RecoveryAccuracy, (slots[0], slots[1])
        case "mean":
            return lambda: Mean("loss"), (torch.randn(count, generator=generator),)
        case "right":
            return lambda: Mean("accuracy"), (torch.randn(count, generator=generator) > 0,)
        case "features":
            return FeatureStatistics, (torch.randn(count, 4, generator=generator) + 30,)
    raise AssertionError(kind)


def value(accumulator):
    if isinstance(accumulator, FeatureStatistics):
        reference = FeatureStatistics()
        reference.update(torch.randn(50, 4, generator=torch.Generator().manual_seed(1)))
        return {"distance": frechet_distance(accumulator, reference)}
    return accumulator.compute()


KINDS = ["psnr", "ssim", "codes", "recovery", "mean", "right", "features"]


@pytest.mark.parametrize("kind", KINDS)
@given(cuts=st.lists(st.integers(0, 12), max_size=3), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_any_split_of_the_images_gives_the_same_value(kind, cuts, seed):
    empty, data = updates(kind, 12, seed)
    whole = empty()
    whole.update(*data)
    merged = empty()
    edges = [0, *sorted(cuts), 12]
    for low, high in pairwise(edges):
        part = empty()
        part.update(*(tensor[low:high] for tensor in data))
        merged = merged.merge(part)
    assert merged.count == whole.count
    assert value(merged) == pytest.approx(value(whole), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_accumulators_travel_and_keep_counting_afterwards(kind):
    empty, data = updates(kind, 8, seed=0)
    with torch.inference_mode():  # as an evaluator fills them
        travelled = empty()
        travelled.update(*(tensor[:5] for tensor in data))
    travelled = pickle.loads(pickle.dumps(travelled))
    travelled.update(*(tensor[5:] for tensor in data))
    whole = empty()
    whole.update(*data)
    assert value(travelled) == pytest.approx(value(whole), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_changes_neither_part(kind):
    empty, data = updates(kind, 8, seed=0)
    a, b = empty(), empty()
    a.update(*(tensor[:4] for tensor in data))
    b.update(*(tensor[4:] for tensor in data))
    before = value(a), value(b)
    a.merge(b)
    assert (value(a), value(b)) == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "features"])
def test_before_the_first_image_every_value_is_nan(kind):
    empty, data = updates(kind, 4, seed=0)
    filled = empty()
    filled.update(*data)
    assert empty().compute().keys() == filled.compute().keys()
    assert all(math.isnan(number) for number in empty().compute().values())
    assert empty().merge(filled).compute() == filled.compute() == filled.merge(empty()).compute()


@pytest.mark.parametrize(("height", "width"), [(16, 24), (11, 11), (32, 13)])
def test_psnr_and_ssim_equal_those_of_scikit_image(height, width):
    true, decoded = random_images(3, height, width)
    psnr, ssim = Psnr(), Ssim()
    psnr.update(true, decoded)
    ssim.update(true, decoded)
    pairs = [[to_uint8(tensor[i]).permute(1, 2, 0).numpy() for tensor in (true, decoded)] for i in range(3)]
    expected = np.mean([peak_signal_noise_ratio(*pair, data_range=255) for pair in pairs])
    assert psnr.compute()["psnr"] == pytest.approx(expected, abs=1e-5)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = np.mean(
        [structural_similarity(*pair, data_range=255, channel_axis=2, **settings) for pair in pairs]
    )
    assert ssim.compute()["ssim"] == pytest.approx(expected, abs=1e-5)


def ceiling(images):
    return 10 * math.log10(255**2 * images[0].numel())


def test_an_exact_reconstruction_counts_as_one_value_off_by_one_level():
    true = torch.full((1, 3, 16, 16), 100.0) / 127.5 - 1
    nearly = true.clone()
    nearly[0, 1, 2, 3] += 1 / 127.5
    for reconstruction in (true, nearly):
        psnr = Psnr()
        psnr.update(true, reconstruction)
        assert psnr.compute()["psnr"] == pytest.approx(ceiling(true), abs=1e-12)
    assert ceiling(true) == pytest.approx(77, abs=0.1)
    assert ceiling(torch.zeros(1, 3, 256, 256)) == pytest.approx(101, abs=0.1)


def test_a_perfect_reconstruction_has_the_greatest_psnr_and_ssim_one():
    true, _ = random_images(2)
    psnr, ssim = Psnr(), Ssim()
    psnr.update(true, true)
    ssim.update(true, true)
    assert psnr.compute()["psnr"] == pytest.approx(ceiling(true))
    assert ssim.compute()["ssim"] == pytest.approx(1, abs=1e-12)


def test_differences_that_no_file_could_hold_do_not_count():
    true = to_uint8(random_images(2)[0]).float() / 127.5 - 1
    psnr, beyond = Psnr(), true.clone()
    beyond[true == 1] = 7.0  # clamped
    psnr.update(true, beyond + 0.4 / 127.5)  # rounded away, but where clamped already
    assert psnr.compute()["psnr"] == pytest.approx(ceiling(true))


def test_every_byte_survives_the_way_to_the_unit_range_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values.float() / 127.5 - 1), values)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_half_precision_reconstructions_are_measured():
    true, decoded = random_images(2)
    psnr = Psnr()
    psnr.update(true, decoded.bfloat16())
    assert 10 < psnr.compute()["psnr"] < 20


def test_pixel_metrics_refuse_images_that_are_too_small_or_differ_in_size():
    with pytest.raises(InputError, match="at least 11 px, got 10 x 16"):
        Ssim().update(*random_images(1, 10, 16))
    with pytest.raises(InputError, match="one size"):
        Psnr().update(random_images(1)[0], random_images(2)[0])


def test_equal_use_of_half_the_vocabulary_has_its_entropy():
    codes = CodeUsage(16)
    codes.update(torch.arange(8).repeat(4, 3))
    assert codes.compute() == pytest.approx({"code_usage": 50, "code_entropy_bits": 3, "code_perplexity": 8})
    assert codes.count == 96


def test_one_code_alone_has_no_entropy():
    codes = CodeUsage(4)
    codes.update(torch.zeros(2, 3, dtype=torch.int64))
    assert codes.compute() == {"code_usage": 25.0, "code_entropy_bits": 0.0, "code_perplexity": 1.0}
    assert math.copysign(1, codes.compute()["code_entropy_bits"]) == 1


@pytest.mark.parametrize("index", [-2, 16])  # -1 is padding
def test_a_code_outside_the_vocabulary_is_refused(index):
    wrong = CodeUsage(16)
    wrong.update(torch.tensor([[3, index]]))  # nothing waits for the device here
    reach = f"from {min(3, index)} to {max(3, index)}: they must be 0 to 15"
    for codes in (wrong, CodeUsage(16).merge(wrong)):
        with pytest.raises(InputError, match=reach):
            codes.compute()
    with pytest.raises(InputError, match="must be integers"):
        CodeUsage(16).update(torch.ones(3))
    with pytest.raises(InputError, match="do not merge"):
        CodeUsage(16).merge(CodeUsage(8))


def test_recovery_and_its_baselines_by_hand():
    recovery = RecoveryAccuracy()
    recovery.update(torch.tensor([[0, 1, 1, 1]]), torch.tensor([[0, 1, 1, 2]]))  # 3 right; largest cluster 2
    recovery.update(torch.tensor([[0, 0, 0, 0]]), torch.tensor([[0, 1, 2, 3]]))  # 1 right; largest cluster 1
    # Most frequent per cell: slot 0 twice, slot 1 twice, then once each of two.
    assert recovery.compute() == pytest.approx(
        {
            "recovery_accuracy": 100 * 4 / 8,
            "recovery_baseline": 100 * 6 / 8,
            "recovery_baseline_cell": 100 * 6 / 8,
            "recovery_baseline_largest": 100 * 3 / 8,
        }
    )
    assert recovery.count == 8


def test_no_constant_answer_per_cell_beats_the_recovery_baseline():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 3, (40, 6), generator=generator)
    for slot in range(3):
        recovery = RecoveryAccuracy()
        recovery.update(torch.full_like(truth, slot), truth)
        assert recovery.compute()["recovery_accuracy"] <= recovery.compute()["recovery_baseline_cell"]


def test_recovery_refuses_other_grids_and_negative_slots():
    recovery = RecoveryAccuracy()
    recovery.update(torch.zeros(1, 4).long(), torch.zeros(1, 4).long())
    with pytest.raises(InputError, match="4 and 9 cells"):
        recovery.update(torch.zeros(1, 9).long(), torch.zeros(1, 9).long())
    with pytest.raises(InputError, match=r"both must be \(B, N\)"):
        recovery.update(torch.zeros(1, 4).long(), torch.zeros(4).long())
    with pytest.raises(InputError, match="negative slot"):
        recovery.update(torch.zeros(1, 4).long(), -torch.ones(1, 4).long())


def test_means_are_percent_of_booleans_and_plain_otherwise():
    right, loss = Mean("accuracy"), Mean("loss")
    right.update(torch.tensor([True, False, False, False]))
    loss.update(torch.tensor([1.0, 2.0]))
    assert right.compute() == {"accuracy": 25.0}
    assert loss.compute() == {"loss": 1.5}
    with pytest.raises(InputError, match="booleans and numbers"):
        right.update(torch.tensor([0.5]))
    with pytest.raises(InputError, match="do not merge"):
        right.merge(loss)
