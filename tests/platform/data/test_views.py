"""The three views of a training image, and the one of evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import auto_augment

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq_platform.data import ViewsConfig, evaluation_view, make_views
from mergevq_platform.data.augment import GREY, OPERATIONS, RandAugmentConfig, rand_augmented
from mergevq_platform.data.views import RESIZING, covering


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def ramp(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards: tells where a crop came from and whether it was flipped."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.linspace(0, 255, width)[None]
    image[..., 1] = np.linspace(0, 255, height)[:, None]
    return image


ALL = ViewsConfig(image_size=32, student_size=24, teacher_size=28)


@given(height=st.integers(1, 90), width=st.integers(1, 90), sample=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_views_have_their_sizes_whatever_the_image(height: int, width: int, sample: int) -> None:
    views = make_views(noise(height, width), ALL, seed=0, epoch=0, sample=sample)
    assert {name: view.shape for name, view in views.items()} == {
        "image": (32, 32, 3),
        "student": (24, 24, 3),
        "teacher": (28, 28, 3),
    }
    assert all(view.dtype == np.uint8 for view in views.values())
    assert evaluation_view(noise(height, width), 32).shape == (32, 32, 3)


def test_views_are_a_function_of_seed_epoch_and_sample() -> None:
    image = noise(60, 80)

    def views(**key: int) -> dict[str, bytes]:
        return {name: view.tobytes() for name, view in make_views(image, ALL, **key).items()}

    base = views(seed=0, epoch=0, sample=5)
    assert views(seed=0, epoch=0, sample=5) == base
    for other in ({"seed": 1}, {"epoch": 1}, {"sample": 6}):
        changed = views(**{"seed": 0, "epoch": 0, "sample": 5, **other})
        assert changed["student"] != base["student"]


def test_asking_for_more_views_does_not_change_the_others() -> None:
    image = noise(60, 80)
    alone = make_views(image, ViewsConfig(image_size=32), seed=3, epoch=1, sample=2)
    assert set(alone) == {"image"}
    assert np.array_equal(alone["image"], make_views(image, ALL, seed=3, epoch=1, sample=2)["image"])


def test_the_reconstruction_and_teacher_views_are_random_crops_never_flipped() -> None:
    lefts = set()
    for sample in range(60):
        views = make_views(ramp(40, 80), ALL, seed=0, epoch=0, sample=sample)
        for name in ("image", "teacher"):
            red = views[name][..., 0].astype(int).mean(0)
            assert np.all(np.diff(red) > 0)  # not flipped
            assert red[-1] - red[0] == pytest.approx(127, abs=8)  # the short side whole: half of the width
        lefts.add(int(views["image"][0, 0, 0]))
    assert len(lefts) > 20
    assert min(lefts) < 20
    assert max(lefts) > 110


def test_a_image_of_the_right_size_is_left_as_it_is() -> None:
    image = noise(32, 32)
    assert np.array_equal(make_views(image, ALL, seed=0, epoch=0, sample=0)["image"], image)
    assert np.array_equal(evaluation_view(image, 32), image)


def test_the_student_is_flipped_half_of_the_time_and_its_crops_fill_their_range() -> None:
    flips, areas = [], []
    for sample in range(400):
        student = make_views(ramp(96, 96), ALL, seed=0, epoch=0, sample=sample)["student"].astype(int)
        flips.append(student[12, -1, 0] < student[12, 0, 0])
        wide, high = (np.ptp(student[..., channel]) / 255 for channel in (0, 1))
        areas.append(wide * high)
        assert 3 / 4 - 0.2 < wide / high < 4 / 3 + 0.3
    assert 0.42 < np.mean(flips) < 0.58
    assert 0.04 < min(areas) < 0.15
    assert max(areas) > 0.85
    # Crops that do not fit are drawn again, so large ones are rarer; a ramp's ends lie half a pixel inside of the crop.
    random = np.random.default_rng(0)
    area, aspect = (
        random.uniform(0.08, 1, 20_000),
        np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), 20_000)),
    )
    fits = (area * aspect <= 1) & (area / aspect <= 1)
    assert np.mean(areas) == pytest.approx(area[fits].mean() * (23 / 24) ** 2, abs=0.035)


def test_a_higher_least_scale_keeps_small_shapes_whole() -> None:
    views = ViewsConfig(image_size=32, student_size=32, student_scale=(0.5, 1.0), student_flip=0.0)
    areas = []
    for sample in range(100):
        student = make_views(ramp(100, 100), views, seed=0, epoch=0, sample=sample)["student"].astype(int)
        areas.append(np.ptp(student[..., 0]) * np.ptp(student[..., 1]) / 255**2)
    assert min(areas) > 0.4


@pytest.mark.parametrize(("height", "width"), [(1, 1_000_000), (1_000_000, 1), (3, 400_000)])
def test_a_thin_image_costs_no_more_than_its_views(height: int, width: int) -> None:
    image = np.full((height, width, 3), 77, np.uint8)  # enlarged whole it would be 200 GB
    sizes = ViewsConfig(image_size=256, student_size=224, teacher_size=224)
    views = make_views(image, sizes, seed=0, epoch=0, sample=0)
    for view, size in ((evaluation_view(image, 256), 256), *((v, len(v)) for v in views.values())):
        assert view.shape == (size, size, 3)
        assert np.all(view == 77)


@given(thin=st.integers(1, 7), long=st.integers(70, 200), size=st.integers(16, 64), sample=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_part_of_a_thin_image_is_that_of_the_whole(thin: int, long: int, size: int, sample: int) -> None:
    random = np.random.default_rng(sample)
    image = random.integers(90, 166, (thin, long, 3), dtype=np.uint8)  # no pass overshoots and is clipped
    for pixels in (image, image.transpose(1, 0, 2)):
        height, width = covering(pixels, size)
        whole = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        top, left = (height - size) // 2, (width - size) // 2
        middle = np.asarray(whole)[top : top + size, left : left + size].astype(int)
        assert np.abs(evaluation_view(pixels, size) - middle).max() <= 2


def test_images_up_to_sixteen_times_as_long_as_wide_are_resized_whole_as_ever() -> None:
    for height, width in ((4, 64), (64, 4), (30, 44), (500, 20), (20, 2000)):
        image = noise(height, width)
        size = 32 if min(height, width) < 20 else 8
        tall, broad = covering(image, size)
        tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        whole = torch.nn.functional.interpolate(tensor, size=(tall, broad), mode="bicubic", antialias=True)
        top, left = (tall - size) // 2, (broad - size) // 2
        expected = whole[0].permute(1, 2, 0).numpy()[top : top + size, left : left + size]
        assert np.array_equal(evaluation_view(image, size), expected)


def test_resampling_is_pillows_bicubic_to_one_grey_level() -> None:
    image = noise(97, 131)
    pillow = Image.fromarray(image).resize((round(131 * 32 / 97), 32), Image.Resampling.BICUBIC)
    left = (pillow.width - 32) // 2
    expected = np.asarray(pillow.crop((left, 0, left + 32, 32))).astype(int)
    assert np.abs(evaluation_view(image, 32).astype(int) - expected).max() <= 1


def test_the_longer_side_rounds() -> None:
    assert covering(noise(427, 640), 256) == (256, 384)
    assert "384 x 256" in RESIZING


@pytest.mark.parametrize("way", [1, -1])
@pytest.mark.parametrize("place", range(15))
def test_every_operation_of_randaugment_is_timms(
    place: int, way: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(noise(30, 44, seed=3))
    name = auto_augment._RAND_INCREASING_TRANSFORMS[place]
    monkeypatch.setattr(auto_augment.random, "random", lambda: 0.1 if way == 1 else 0.9)  # timm's coin
    for magnitude in (0.0, 1.0, 4.7, 9.0, 9.9 if name == "PosterizeIncreasing" else 10.0):
        theirs = auto_augment.AugmentOp(
            name,
            prob=1.0,
            magnitude=magnitude,
            hparams={"img_mean": GREY, "interpolation": Image.Resampling.BICUBIC},
        )
        ours = OPERATIONS[place](image, magnitude / 10, way)
        assert np.array_equal(np.asarray(ours), np.asarray(theirs(image))), (name, magnitude)


def test_posterizing_at_the_greatest_strength_leaves_one_bit() -> None:
    posterized = OPERATIONS[4](
        Image.fromarray(noise(30, 44)), 1.0, 1
    )  # timm's asks for 0, which Pillow refuses
    assert set(np.unique(np.asarray(posterized))) == {0, 128}


def test_randaugment_follows_its_numbers_alone() -> None:
    image = noise(20, 20)
    settings = RandAugmentConfig(operations=2, magnitude=9.0, magnitude_std=0.5)

    def place(index: int) -> float:
        return (index + 0.5) / len(OPERATIONS)

    invert, rotate = 2, 3
    numbers = np.array([place(invert), 0.49, 0.5, 0.0, place(rotate), 0.51, 0.5, 0.0])
    assert np.array_equal(rand_augmented(image, settings, numbers), 255 - image)  # the second stays away
    numbers[5] = 0.0
    numbers[6] = 0.975  # a strength of 1.96 standard deviations more
    rotated = OPERATIONS[rotate](Image.fromarray(255 - image), (9 + 0.5 * 1.95996) / 10, 1)
    assert np.array_equal(rand_augmented(image, settings, numbers), np.asarray(rotated))


def test_a_classifiers_views_are_augmented_and_erased_by_seed_epoch_and_sample_alone() -> None:
    image = noise(60, 80)
    plain = ViewsConfig(image_size=32)
    augmented = parse(
        ViewsConfig, {"image_size": 32, "image_augment": {"probability": 1.0}, "image_erase": 1.0}
    )

    def view(config: ViewsConfig, **key: int) -> np.ndarray:
        return make_views(image, config, **{"seed": 0, "epoch": 0, "sample": 5, **key})["image"]

    again = view(augmented)
    assert np.array_equal(view(augmented), again)
    for other in ({"seed": 1}, {"epoch": 1}, {"sample": 6}):
        assert not np.array_equal(view(augmented, **other), again)
    off = parse(ViewsConfig, {"image_size": 32, "image_augment": {"probability": 0.0}, "image_erase": 0.0})
    assert np.array_equal(view(off), view(plain))  # the crop does not depend on what follows it


def test_erasing_puts_noise_of_imagenets_pixels_into_a_rectangle() -> None:
    size, black = 64, np.zeros((64, 64, 3), dtype=np.uint8)
    config = ViewsConfig(image_size=size, image_erase=0.25)
    shares, ratios, pixels, count = [], [], [], 1500
    for sample in range(count):
        view = make_views(black, config, seed=0, epoch=0, sample=sample)["image"]
        rows, columns = np.nonzero(view.any(-1).any(1))[0], np.nonzero(view.any(-1).any(0))[0]
        if len(rows) == 0:
            continue
        part = view[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert part.any(-1).mean() > 0.9  # one rectangle
        shares.append(part.shape[0] * part.shape[1] / size**2)
        ratios.append(part.shape[0] / part.shape[1])
        pixels.append(part.reshape(-1, 3))
    assert len(shares) == pytest.approx(count / 4, rel=0.15)
    assert 0.015 < min(shares) < 0.03
    assert 0.3 < max(shares) < 0.35
    assert 0.25 < min(ratios) < 0.4 < 2.5 < max(ratios) < 4
    values = np.concatenate(pixels) / 255
    assert values.mean(0) == pytest.approx(
        [0.485, 0.456, 0.406], abs=0.01
    )  # clipped at 0 and 1: a little inwards
    assert values.std(0) == pytest.approx([0.229, 0.224, 0.225], abs=0.01)


def test_senseless_views_are_refused_at_parse() -> None:
    assert parse(ViewsConfig, to_tree(ALL)) == ALL
    for change, message in (
        ({"student_scale": [0.9, 0.5]}, "lower bound first"),
        ({"student_scale": [0.5, 1.5]}, "cannot cover more than 1"),
        ({"image_size": -1}, "image_size"),
        ({"image_size": [0, 32]}, "image_size"),
        ({"crop": 3}, "unknown key 'crop'"),
        ({"image_erase": 1.5}, "image_erase"),
        ({"image_augment": {"magnitude": 11}}, "magnitude"),
        (
            {"image_augment": {"policy": "a"}},
            "unknown key 'image_augment.policy': did you mean 'probability'",
        ),
    ):
        with pytest.raises(InputError, match=message):
            parse(ViewsConfig, {"image_size": 32, **change})


OBLONG = ViewsConfig(image_size=(24, 40), student_size="16x32", teacher_size=28)


@given(height=st.integers(1, 90), width=st.integers(1, 90), sample=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_views_of_any_shape_are_covered_by_the_whole_image_and_not_distorted(
    height: int, width: int, sample: int
) -> None:
    image = noise(height, width)
    views = make_views(image, OBLONG, seed=0, epoch=0, sample=sample)
    assert {name: view.shape[:2] for name, view in views.items()} == {
        "image": (24, 40),
        "student": (16, 32),
        "teacher": (28, 28),
    }
    assert evaluation_view(image, (24, 40)).shape == (24, 40, 3)
    tall, broad = covering(image, (24, 40))
    assert tall == 24 or broad == 40, "the smallest copy that covers the view"
    assert min(tall - 24, broad - 40) >= 0
    assert abs(tall - broad * height / width) <= 0.5 * max(1, height / width)
    assert covering(image, (32, 32)) == covering(image, 32)


def test_an_oblong_view_is_the_middle_of_the_image_height_first() -> None:
    wide = evaluation_view(ramp(64, 64), (24, 48)).astype(int)  # the whole width, half the height
    assert np.ptp(wide[..., 0]) > 245
    assert wide[..., 1].min() > 50
    assert wide[..., 1].max() < 205
    tall = evaluation_view(ramp(64, 64), (48, 24)).astype(int)
    assert tall[..., 0].min() > 50
    assert np.ptp(tall[..., 1]) > 245
    assert np.array_equal(evaluation_view(ramp(48, 64), (48, 64)), ramp(48, 64)), (
        "as large as the view: untouched"
    )


def test_random_resized_crops_have_the_shape_of_their_view() -> None:
    exact = ViewsConfig(image_size=32, student_size=(20, 60), student_ratio=(1.0, 1.0), student_flip=0.0)
    for sample in range(20):
        crop = make_views(ramp(120, 120), exact, seed=0, epoch=0, sample=sample)["student"].astype(int)
        across, down = np.ptp(crop[..., 0]), np.ptp(crop[..., 1])
        assert across == pytest.approx(3 * down, rel=0.25, abs=12), "a crop three times as wide as it is high"


def test_erasing_and_randaugment_keep_an_oblong_views_shape() -> None:
    tree = {"image_size": "24x40", "image_augment": {"probability": 1.0}, "image_erase": 1.0}
    config = parse(ViewsConfig, tree)
    for sample in range(8):
        view = make_views(noise(60, 80), config, seed=0, epoch=0, sample=sample)["image"]
        assert view.shape == (24, 40, 3)
