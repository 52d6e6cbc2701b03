"""The three views of a training picture, and the one of evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mergevq.config import parse, to_tree
from mergevq.errors import InputError
from mergevq_platform.data import ViewsConfig, evaluation_view, make_views


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def ramp(height: int, width: int) -> np.ndarray:
    """Red grows to the right, green downwards: tells where a crop came from and whether it was flipped."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[..., 0] = np.linspace(0, 255, width)[None]
    picture[..., 1] = np.linspace(0, 255, height)[:, None]
    return picture


ALL = ViewsConfig(image_size=32, student_size=24, teacher_size=28)


@given(height=st.integers(1, 90), width=st.integers(1, 90), sample=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_views_have_their_sizes_whatever_the_picture(height: int, width: int, sample: int) -> None:
    views = make_views(noise(height, width), ALL, seed=0, epoch=0, sample=sample)
    assert {name: view.shape for name, view in views.items()} == {
        "image": (32, 32, 3),
        "student": (24, 24, 3),
        "teacher": (28, 28, 3),
    }
    assert all(view.dtype == np.uint8 for view in views.values())
    assert evaluation_view(noise(height, width), 32).shape == (32, 32, 3)


def test_views_are_a_function_of_seed_epoch_and_sample() -> None:
    picture = noise(60, 80)

    def views(**key: int) -> dict[str, bytes]:
        return {name: view.tobytes() for name, view in make_views(picture, ALL, **key).items()}

    base = views(seed=0, epoch=0, sample=5)
    assert views(seed=0, epoch=0, sample=5) == base
    for other in ({"seed": 1}, {"epoch": 1}, {"sample": 6}):
        changed = views(**{"seed": 0, "epoch": 0, "sample": 5, **other})
        assert changed["student"] != base["student"]


def test_asking_for_more_views_does_not_change_the_others() -> None:
    picture = noise(60, 80)
    alone = make_views(picture, ViewsConfig(image_size=32), seed=3, epoch=1, sample=2)
    assert set(alone) == {"image"}
    assert np.array_equal(alone["image"], make_views(picture, ALL, seed=3, epoch=1, sample=2)["image"])


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


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    picture = noise(32, 32)
    assert np.array_equal(make_views(picture, ALL, seed=0, epoch=0, sample=0)["image"], picture)
    assert np.array_equal(evaluation_view(picture, 32), picture)


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


def test_resampling_is_pillows_bicubic_to_one_grey_level() -> None:
    picture = noise(97, 131)
    pillow = Image.fromarray(picture).resize((round(131 * 32 / 97), 32), Image.Resampling.BICUBIC)
    left = (pillow.width - 32) // 2
    expected = np.asarray(pillow.crop((left, 0, left + 32, 32))).astype(int)
    assert np.abs(evaluation_view(picture, 32).astype(int) - expected).max() <= 1


def test_senseless_views_are_refused_at_parse() -> None:
    assert parse(ViewsConfig, to_tree(ALL)) == ALL
    for change, message in (
        ({"student_scale": [0.9, 0.5]}, "lower bound first"),
        ({"student_scale": [0.5, 1.5]}, "cannot cover more than 1"),
        ({"image_size": 0}, "image_size"),
        ({"crop": 3}, "unknown key 'crop'"),
    ):
        with pytest.raises(InputError, match=message):
            parse(ViewsConfig, {"image_size": 32, **change})
