"""The procedural images and the digits: what makes them a fair test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mergevq.errors import InputError
from mergevq_platform.data import decode, open_dataset, write_digits, write_shapes
from mergevq_platform.procedural.shape_distances import CLASSES, SHAPES, measures
from mergevq_platform.procedural.shapes import render


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    return render(np.arange(1800), "train", 32, seed=0)


def one_nearest(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> float:
    distances = (test**2).sum(1)[:, None] - 2 * test @ train.T + (train**2).sum(1)[None]
    return float(np.mean(train_labels[distances.argmin(1)] == test_labels))


def ridge(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    mean, scale = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / scale, (test - mean) / scale
    targets = np.eye(len(CLASSES))[train_labels] - 1 / len(CLASSES)
    weights = np.linalg.solve(train.T @ train + 30 * np.eye(train.shape[1]), train.T @ targets)
    return float(np.mean((test @ weights).argmax(1) == test_labels))


def test_a_image_is_a_function_of_seed_split_and_number() -> None:
    whole, labels = render(np.arange(40), "train", 16, seed=3)
    for chosen in ([7], [39, 0], list(range(20, 30))):
        part, part_labels = render(np.array(chosen), "train", 16, seed=3)
        assert np.array_equal(part, whole[chosen])
        assert np.array_equal(part_labels, labels[chosen])
    assert not np.array_equal(render(np.arange(40), "val", 16, seed=3)[0], whole)
    assert not np.array_equal(render(np.arange(40), "train", 16, seed=4)[0], whole)


def test_there_are_at_least_ten_classes_equally_often(sample: tuple[np.ndarray, np.ndarray]) -> None:
    _, labels = sample
    assert len(CLASSES) >= 10
    assert set(np.bincount(labels, minlength=len(CLASSES))) == {len(labels) // len(CLASSES)}


def test_colour_does_not_tell_the_class(sample: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = sample
    colours = images.reshape(len(images), -1, 3).astype(float)
    features = np.concatenate(
        [
            colours.mean(1),
            colours.std(1),
            np.quantile(colours, [0.1, 0.5, 0.9], axis=1).transpose(1, 0, 2).reshape(len(images), -1),
        ],
        1,
    )
    train, test = slice(0, 1200), slice(1200, None)
    chance = 1 / len(CLASSES)
    assert ridge(features[train], labels[train], features[test], labels[test]) < chance + 0.06
    assert one_nearest(features[train], labels[train], features[test], labels[test]) < chance + 0.06


def test_pixels_alone_give_little_away(sample: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = sample
    grey = (
        images.astype(float).mean(-1).reshape(len(images), 16, 2, 16, 2).mean((2, 4)).reshape(len(images), -1)
    )
    assert ridge(grey[:1200], labels[:1200], grey[1200:], labels[1200:]) < 0.3


def test_every_shape_covers_the_same_area_and_is_told_apart_by_its_outline() -> None:
    areas, reach = measures()
    axis = np.linspace(-2.5, 2.5, 501)
    x, y = np.meshgrid(axis, axis)
    masks = [
        shape(x * np.sqrt(area), y * np.sqrt(area)) < 0
        for shape, area in zip(SHAPES.values(), areas, strict=True)
    ]
    covered = np.array([mask.mean() for mask in masks])
    assert np.ptp(covered) / covered.mean() < 0.05
    for one in range(len(masks)):
        for other in range(one):
            overlap = max(np.logical_and(masks[one], np.rot90(masks[other], turn)).sum() for turn in range(4))
            assert overlap / masks[one].sum() < 0.97, (CLASSES[one], CLASSES[other])
    assert np.all(reach > 0.9)


def test_shapes_stand_out_from_their_background() -> None:
    # The centre of a disc shows the shape's colour; the four corners show the background.
    images, labels = render(np.arange(1200), "val", 32, seed=1)
    discs = images[labels == CLASSES.index("disc")].astype(float)
    spread = discs.reshape(len(discs), -1, 3).std(1).max(1)
    assert np.mean(spread > 25) > 0.98


def test_written_images_are_the_rendered_ones_and_writing_again_changes_nothing(tmp_path: Path) -> None:
    write_shapes(tmp_path / "set", images=150, val_images=20, size=16, seed=2)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    write_shapes(tmp_path / "set", images=150, val_images=20, size=16, seed=2)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == before
    dataset = open_dataset(tmp_path / "set", "train")
    images, labels = render(np.arange(150), "train", 16, seed=2)
    rows = dataset.read([0, 149, 77])
    assert [row.label for row in rows] == labels[[0, 149, 77]].tolist()
    assert np.array_equal(np.asarray(decode(rows[2].data)), images[77])
    assert open_dataset(tmp_path / "set", "val").rows == 20
    with pytest.raises(InputError, match="already holds another image set"):
        write_shapes(tmp_path / "set", images=150, val_images=20, size=16, seed=3)


def test_a_set_of_some_classes_holds_the_first_images_that_show_them_numbered_anew(tmp_path: Path) -> None:
    chosen = ("arrow", "ring")
    write_shapes(tmp_path / "set", images=31, val_images=5, size=16, classes=chosen)
    dataset = open_dataset(tmp_path / "set", "train")
    images, labels = render(np.arange(31 * len(CLASSES)), "train", 16)
    expected = [i for i, label in enumerate(labels) if CLASSES[label] in chosen][:31]
    rows = dataset.read(range(31))
    assert dataset.classes == chosen
    assert sorted(chosen[row.label] for row in rows) == sorted(CLASSES[labels[i]] for i in expected)
    shown = {np.asarray(decode(row.data)).tobytes() for row in rows}
    assert shown == {images[i].tobytes() for i in expected}


def test_classes_that_are_no_shapes_or_named_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no shape 'circle': disc, ring"):
        write_shapes(tmp_path / "x", classes=["disc", "circle"])
    with pytest.raises(InputError, match="classes is disc disc: name one shape or more, each once"):
        write_shapes(tmp_path / "x", classes=["disc", "disc"])


def test_senseless_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images is 0: it must be at least 1"):
        write_shapes(tmp_path / "x", images=0)
    with pytest.raises(InputError, match="size is 4"):
        write_shapes(tmp_path / "x", images=10, size=4)
    assert not (tmp_path / "x").exists()


def test_the_digits_are_real_and_split_without_overlap(tmp_path: Path) -> None:
    write_digits(tmp_path / "digits", size=32)
    train, val = (open_dataset(tmp_path / "digits", split) for split in ("train", "val"))
    assert (train.rows, val.rows, train.num_classes) == (1500, 297, 10)
    images = [np.asarray(decode(row.data)) for row in train.read(range(400))]
    assert images[0].shape == (32, 32, 3)
    labels = np.array([row.label for row in train.read(range(400))])
    others = np.array(
        [np.asarray(decode(row.data))[::4, ::4, 0].ravel() for row in val.read(range(297))], dtype=float
    )
    small = np.array([image[::4, ::4, 0].ravel() for image in images], dtype=float)
    assert one_nearest(small, labels, others, np.array([row.label for row in val.read(range(297))])) > 0.85
    assert not {image.tobytes() for image in small} & {image.tobytes() for image in others}
