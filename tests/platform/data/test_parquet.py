"""Parquet as the world writes it: columns, labels, paths, folders of values, empty parts, large row groups."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mergevq.errors import InputError
from mergevq_platform.data import (
    BatchPartition,
    Dataset,
    Reading,
    TrainStream,
    ViewsConfig,
    describe,
    open_dataset,
)
from mergevq_platform.data import pack as pack_with_progress
from mergevq_platform.data.images.decoding import encode_png
from mergevq_platform.data.info import describe_in_short
from mergevq_platform.data.parquet.directory import split_names
from mergevq_platform.data.parquet.manifest import Manifest
from mergevq_platform.data.parquet.shards import ImageRecord, write_set

HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def image(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8))


def images(count: int, first: int = 0) -> pa.Array:
    """A column of images as the Hub keeps them."""
    return pa.array([{"bytes": image(first + i), "path": f"{i}.png"} for i in range(count)], HUB)


def write(
    path: Path, columns: Mapping[str, Any], names: Mapping[str, Sequence[str]] | None = None, **options: Any
) -> None:
    """A Parquet file; `names` are class names of columns, where Hugging Face keeps them."""
    table = pa.table(dict(columns))
    if names:
        features = {key: {"names": list(value), "_type": "ClassLabel"} for key, value in names.items()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


def two_splits(root: Path, train: Any, val: Any, **names: Sequence[str]) -> Path:
    """train.parquet and val.parquet with these labels."""
    for split, labels, first in (("train", train, 0), ("val", val, 100)):
        write(root / f"{split}.parquet", {"image": images(len(labels), first), "label": labels}, names)
    return root


def labels(dataset: Dataset) -> list[int]:
    return [row.label for row in dataset.read(range(dataset.rows))]


def named(dataset: Dataset) -> list[str | None]:
    return [None if label < 0 else dataset.classes[label] for label in labels(dataset)]


def pack(source: Path, directory: Path) -> Manifest:
    return pack_with_progress(source, directory, progress=False)


def refused(message: str, path: Path, split: str = "train", reading: Reading | None = None) -> None:
    with pytest.raises(InputError, match=message) as raised:
        open_dataset(path, split, reading)
    assert "\n" not in str(raised.value)


# ---- which column is which


def test_a_set_without_labels_names_its_other_columns(tmp_path: Path) -> None:
    columns = {
        "image": images(3),
        "Art des Motivs": ["Hund", "Café", "Hund"],
        "id": [7, 9, 9],
        "boxes": [[1], [2], [3]],
    }
    write(tmp_path / "train.parquet", columns)
    line = "other columns: Art des Motivs, id: label_column reads one"
    assert line in open_dataset(tmp_path, "train").notes
    assert line in describe(tmp_path)
    chosen = open_dataset(tmp_path, "train", Reading(label_column="Art des Motivs"))
    assert not any(note.startswith("other columns") for note in chosen.notes)
    without = open_dataset(tmp_path, "train", Reading(label_column="none"))
    assert not any(note.startswith("other columns") for note in without.notes)
    many = {f"c{number}": ["a", "b", "c"] for number in range(20)}
    write(tmp_path / "train.parquet", {"image": images(3), **many})
    assert "c10, c11, …: label_column reads one" in describe(tmp_path)


@pytest.mark.parametrize(
    "layout", ["large", "view", "dictionary", "fixed", "struct large", "struct view", "struct dictionary"]
)
def test_image_bytes_of_every_arrow_type_are_read(tmp_path: Path, layout: str) -> None:
    data = [image(seed) for seed in range(5)]
    kinds = {"large": pa.large_binary(), "view": pa.binary_view(), "fixed": pa.binary(len(data[0]))}
    array = pa.array(data, kinds.get(layout.split()[-1], pa.binary()))
    if layout.endswith("dictionary"):
        array = array.dictionary_encode()
    if layout.startswith("struct"):
        array = pa.StructArray.from_arrays([array, pa.array(["p"] * 5)], ["bytes", "path"])
    write(tmp_path / "train.parquet", {"label": [0, 1, 2, 0, 1], "image": array})
    dataset = open_dataset(tmp_path, "train")
    assert [row.data for row in dataset.read(range(5))] == data
    assert labels(dataset) == [0, 1, 2, 0, 1]


def test_a_struct_of_bytes_comes_before_bare_bytes(tmp_path: Path) -> None:
    columns = {"embedding": pa.array([b"1234"] * 3), "img": images(3), "label": [0, 1, 2]}
    write(tmp_path / "train.parquet", columns)
    dataset = open_dataset(tmp_path, "train")
    assert [row.data for row in dataset.read(range(3))] == [image(seed) for seed in range(3)]
    assert dataset.notes[0] == "images: column 'img'; labels: column 'label'"


def test_the_image_column_can_be_chosen_and_must_be_where_two_may_hold_images(tmp_path: Path) -> None:
    columns = {"photo": images(3), "mask": images(3, 50), "caption": ["a", "b", "c"]}
    write(tmp_path / "train.parquet", columns)
    refused("several columns that may hold the images, photo, mask: choose one with image_column", tmp_path)
    chosen = {
        column: open_dataset(tmp_path, "train", Reading(image_column=column)) for column in ("photo", "mask")
    }
    assert chosen["mask"].read([1])[0].data == image(51)
    assert chosen["photo"].fingerprint != chosen["mask"].fingerprint
    refused("has no column 'x', only photo, mask", tmp_path, reading=Reading(image_column="x"))
    refused("'caption' is string, which holds no encoded", tmp_path, reading=Reading(image_column="caption"))


def test_without_a_column_of_images_the_types_are_said(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": ["a.png"], "pixels": [[1, 2]]})
    refused(r"its columns: image \(string\), pixels \(list<element: int64>\)", tmp_path)


def test_choosing_what_is_read_anyway_changes_no_fingerprint(tmp_path: Path) -> None:
    two_splits(tmp_path, [0, 1, 2], [0, 1, 2])
    plain = open_dataset(tmp_path, "train")
    chosen = open_dataset(tmp_path, "train", Reading(image_column="image", label_column="label"))
    assert plain.fingerprint == chosen.fingerprint


# ---- which column is the label


def test_two_columns_that_look_like_labels_are_named_and_one_can_be_chosen(tmp_path: Path) -> None:
    columns = {"img": images(6), "fine_label": [0, 1, 2, 3, 0, 1], "coarse_label": [0, 1] * 3}
    names = {"fine_label": ["apple", "bear", "bee", "boy"], "coarse_label": ["fruit", "animal"]}
    write(tmp_path / "train.parquet", columns, names)
    plain = open_dataset(tmp_path, "train")
    assert (plain.labelled, plain.classes) == (False, ())
    line = "'fine_label' and 'coarse_label' look like labels and are not read: choose one with label_column"
    assert line in plain.notes
    fine, coarse = (
        open_dataset(tmp_path, "train", Reading(label_column=f"{kind}_label")) for kind in ("fine", "coarse")
    )
    assert named(fine) == ["apple", "bear", "bee", "boy", "apple", "bear"]
    assert named(coarse) == ["fruit", "animal"] * 3
    assert len({plain.fingerprint, fine.fingerprint, coarse.fingerprint}) == 3
    assert labels(pickle.loads(pickle.dumps(fine))) == labels(fine)


@pytest.mark.parametrize("column", ["labels", "cls", "Label", "target", "class", "Category", "fine_label"])
def test_the_only_column_that_is_called_as_classes_are_is_read(tmp_path: Path, column: str) -> None:
    write(tmp_path / "train.parquet", {"jpg": images(3), column: [2, 0, 1], "__key__": ["k"] * 3})
    dataset = open_dataset(tmp_path, "train")
    assert labels(dataset) == [2, 0, 1]
    assert dataset.notes[0] == f"images: column 'jpg'; labels: column '{column}'"


def test_label_wins_over_others_and_those_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": images(3), "label": [0, 1, 2], "super_class": [0, 0, 1]})
    dataset = open_dataset(tmp_path, "train")
    assert labels(dataset) == [0, 1, 2]
    assert "'super_class' looks like labels and is not read: choose it with label_column" in dataset.notes


def test_a_column_of_class_numbers_by_another_name_is_named(tmp_path: Path) -> None:
    columns = {"image": images(8), "y": [0, 1, 2, 3] * 2, "width": [1, 2] * 4, "row": list(range(8))}
    write(tmp_path / "train.parquet", columns)
    dataset = open_dataset(tmp_path, "train")
    assert not dataset.labelled
    assert "'y' looks like labels and is not read: choose it with label_column" in dataset.notes
    assert labels(open_dataset(tmp_path, "train", Reading(label_column="y"))) == [0, 1, 2, 3] * 2


def test_a_column_that_only_seemed_to_be_classes_is_named(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": images(2), "target": [0.5, 1.0]})
    dataset = open_dataset(tmp_path, "train")
    assert (dataset.labelled, labels(dataset)) == (False, [-1, -1])
    assert any(
        line.startswith("'target' is not read as labels") and "double and holds 0.5" in line
        for line in dataset.notes
    )
    write(tmp_path / "train.parquet", {"image": images(2), "labels": [[0], [1, 2]]})
    dataset = open_dataset(tmp_path, "train")
    assert not dataset.labelled
    assert any(line.startswith("'labels' is list<element: int64>, not one class") for line in dataset.notes)


def test_a_label_column_that_is_nowhere_is_refused_and_one_that_a_split_lacks_is_said(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": images(3), "kind": [0, 1, 2]})
    write(tmp_path / "test.parquet", {"image": images(2, 9)})
    refused("has no column 'sort', only image, kind", tmp_path, reading=Reading(label_column="sort"))
    test = open_dataset(tmp_path, "test", Reading(label_column="kind"))
    assert (test.labelled, test.notes[-1]) == (False, "the split 'test' has no column 'kind', so no labels")


def test_labels_that_are_no_classes_can_be_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": images(4), "label": [[1, 0], [0, 1]] * 2})
    refused("choose another with label_column, or 'none'", tmp_path)
    dataset = open_dataset(tmp_path, "train", Reading(label_column="none"))
    assert (dataset.labelled, dataset.notes) == (False, ("images: column 'image'; labels: none",))
    write(tmp_path / "b/train.parquet", {"image": images(4), "label": [0, 1] * 2})
    read, unread = (open_dataset(tmp_path / "b", "train", Reading(label_column=c)) for c in (None, "none"))
    assert (read.labelled, unread.labelled) == (True, False)
    assert read.fingerprint != unread.fingerprint


@pytest.mark.parametrize("column", ["image", "label"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, column: str) -> None:
    columns = {"image": images(2), "label": pa.array([0, 1]), "x": pa.array([0, 1])}
    names = [*columns, column, "x"]
    table = pa.Table.from_arrays([columns[name] for name in names], names)
    pq.write_table(table, tmp_path / "train.parquet")
    refused(f"has 2 columns '{column}': write it again with one of them", tmp_path)


def test_a_packed_set_has_settled_its_columns(tmp_path: Path) -> None:
    records = [ImageRecord(image(seed), f"{seed}.png", seed % 2) for seed in range(4)]
    write_set(tmp_path, {"train": records}, ("a", "b"), size=4, source={})
    refused(
        "is packed, and its label_column was settled then", tmp_path, reading=Reading(label_column="fine")
    )
    refused("is packed, and its image_column", tmp_path, reading=Reading(image_column="img"))
    assert open_dataset(tmp_path, "train", Reading(label_column="label", image_column="image")).rows == 4


def test_a_recipe_may_name_the_columns_that_a_set_was_packed_with(tmp_path: Path) -> None:
    columns = {"photo": images(4), "mask": images(4, 9), "fine": [0, 1, 2, 1], "coarse": [0, 0, 1, 0]}
    write(tmp_path / "set/train.parquet", columns)
    chosen = Reading(image_column="photo", label_column="fine")
    pack_with_progress(
        tmp_path / "set", tmp_path / "out", progress=False, image_column="photo", label_column="fine"
    )
    assert sorted(labels(open_dataset(tmp_path / "out", "train", chosen))) == [0, 1, 1, 2]
    refused("label_column was settled then", tmp_path / "out", reading=Reading(label_column="coarse"))


# ---- what labels may be


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["dog", "cat", "owl", "dog"], ("cat", "dog", "owl")),
        (pa.array(["dog", "cat", "owl", "dog"]).dictionary_encode(), ("cat", "dog", "owl")),
        (pa.array(["dog", "cat", "owl", "dog"], pa.large_string()), ("cat", "dog", "owl")),
        (pa.array(["dog", "cat", "owl", "dog"], pa.string_view()), ("cat", "dog", "owl")),
        (pa.array([b"dog", b"cat", b"owl", b"dog"]), ("cat", "dog", "owl")),
        ([" dog", "cat ", "owl", "dog"], ("cat", "dog", "owl")),
        (["10", "9", "0", "10"], ("0", "9", "10")),
        ([True, False, True, True], ("false", "true")),
        ([2.0, 0.0, 1.0, 2.0], ("0", "1", "2")),
        (pa.array([2, 0, 1, 2], pa.decimal128(5, 2)), ("0", "1", "2")),
        (pa.array([2, 0, 1, 2], pa.float16()), ("0", "1", "2")),
        (pa.array([2, 0, 1, 2], pa.uint64()), ("0", "1", "2")),
    ],
)
def test_labels_of_every_type_become_class_numbers_in_place_and_packed(
    tmp_path: Path, values: Any, classes: tuple[str, ...]
) -> None:
    two_splits(tmp_path / "set", values, values)
    for place in (tmp_path / "set", tmp_path / "packed"):
        train, val = (open_dataset(place, split) for split in ("train", "val"))
        assert (train.classes, val.classes, train.unlabelled) == (classes, classes, 0)
        expected = [
            int(value) if train.classes[0] == "0" and classes != ("0", "9", "10") else value
            for value in pa.array(values).to_pylist()
        ]
        said = {
            str(value.decode() if isinstance(value, bytes) else value).lower().strip() for value in expected
        }
        assert {str(name) for name in named(train)} == said
        if place.name == "set":
            pack(place, tmp_path / "packed")


def test_names_are_numbered_over_all_splits(tmp_path: Path) -> None:
    two_splits(tmp_path, ["dog", "owl"], ["cat", "owl", None])
    train, val = (open_dataset(tmp_path, split) for split in ("train", "val"))
    assert train.classes == val.classes == ("cat", "dog", "owl")
    assert (labels(train), labels(val)) == ([1, 2], [0, 2, -1])
    before = train.fingerprint
    two_splits(tmp_path, ["dog", "owl"], ["ape", "owl", None])
    two_splits(tmp_path / "again", ["dog", "owl"], ["dog", "owl", None])
    assert open_dataset(tmp_path / "again", "train").fingerprint != before


def test_nan_null_and_negative_numbers_are_no_label_and_are_counted(tmp_path: Path) -> None:
    for number, (values, none) in enumerate(
        [
            (pa.array([0, 1, None, 1], pa.int64()), 1),
            ([0, -1, -100, 1], 2),
            (pa.array([0.0, float("nan"), None, 1.0]), 2),
            (pa.array(["0", "-1", None, " "]), 3),
            (pa.array([True, None, None, False]), 2),
        ]
    ):
        root = two_splits(tmp_path / str(number), values, values)
        dataset = open_dataset(root, "train")
        assert (dataset.labelled, dataset.unlabelled) == (True, none), values
        assert labels(dataset).count(-1) == none
        assert min(labels(dataset)) == -1
    for values in ([-1, -1], pa.nulls(2), pa.array([None, None], pa.string())):
        write(tmp_path / "none/train.parquet", {"image": images(2), "label": values})
        dataset = open_dataset(tmp_path / "none", "train")
        assert (dataset.labelled, dataset.unlabelled, labels(dataset)) == (False, 2, [-1, -1])


def test_unlabelled_images_are_counted_without_statistics_too(tmp_path: Path) -> None:
    values = [0, -1, 2, -7, 1]
    write(tmp_path / "train.parquet", {"image": images(5), "label": values}, write_statistics=False)
    assert open_dataset(tmp_path, "train").unlabelled == 2


def test_the_unlabelled_images_of_a_packed_set_are_counted(tmp_path: Path) -> None:
    two_splits(tmp_path / "set", [0, -1, 1, None, 1], [-1, -1])
    pack(tmp_path / "set", tmp_path / "packed")
    train, val = (open_dataset(tmp_path / "packed", split) for split in ("train", "val"))
    assert (train.labelled, train.unlabelled, sorted(labels(train))) == (True, 2, [-1, -1, 0, 1, 1])
    assert (val.labelled, val.unlabelled) == (False, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 0.5], "column 'label' is double and holds 0.5, which is no class number"),
        ([0.0, float("inf")], "holds inf"),
        ([[0], [1]], r"column 'label' is list<element: int64> \(\[0\]\), which is no class"),
        (pa.array([1, 2], pa.date32()), r"is date32\[day\] \(1970-01-02\), which is no class"),
        ([{"a": 1}, {"a": 2}], r"is struct<a: int64> \({'a': 1}\), which is no class"),
        ([5, 4_000_000_000], "holds 4000000000, which is no class number"),
        (pa.array([b"\xff\xfe", b"a"]), "is no text"),
    ],
)
def test_what_is_no_class_is_refused_by_type_and_value(tmp_path: Path, values: Any, message: str) -> None:
    write(tmp_path / "train.parquet", {"image": images(2), "label": values})
    refused(message, tmp_path)


@pytest.mark.parametrize(("train", "val"), [([0, 1, 2, 3], [0, 1]), ([0, 1], [0, 3]), ([0, 5], [1, 3])])
def test_numbers_without_names_are_of_as_many_classes_as_any_split_has(
    tmp_path: Path, train: list[int], val: list[int]
) -> None:
    two_splits(tmp_path / "set", train, val)
    classes = tuple(map(str, range(max(train + val) + 1)))
    for split in ("train", "val"):
        assert open_dataset(tmp_path / "set", split).classes == classes
    assert pack(tmp_path / "set", tmp_path / "packed").classes == classes


def test_names_in_the_metadata_may_be_more_in_one_split_and_must_not_differ(tmp_path: Path) -> None:
    write(
        tmp_path / "train.parquet", {"image": images(2), "label": [0, 2]}, {"label": ["cafe\u0301", "b", "c"]}
    )
    write(tmp_path / "val.parquet", {"image": images(2, 9), "label": [0, 1]}, {"label": ["caf\u00e9", "b"]})
    write(tmp_path / "test.parquet", {"image": images(2, 5), "label": [1, 2]})
    for split in split_names(tmp_path):
        assert open_dataset(tmp_path, split).classes == ("café", "b", "c")
    write(tmp_path / "val.parquet", {"image": images(2, 9), "label": [0, 1]}, {"label": ["b", "cafe"]})
    refused("class 0 is 'café' in its split 'train' and 'b' in 'val'", tmp_path)


def test_text_beside_names_of_the_metadata_must_be_among_them(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", {"image": images(2), "label": ["b", "a"]}, {"label": ["b", "a"]})
    assert labels(open_dataset(tmp_path, "train")) == [0, 1]
    write(tmp_path / "train.parquet", {"image": images(2), "label": ["b", "c"]}, {"label": ["b", "a"]})
    refused("holds 'c', which the metadata's classes lack", tmp_path)


def test_names_in_one_split_and_numbers_in_another_are_refused(tmp_path: Path) -> None:
    two_splits(tmp_path, ["a", "b"], [0, 1])
    refused("train.parquet: column 'label' holds names of classes, .*val.parquet: .* numbers", tmp_path)
    two_splits(tmp_path, ["a", "b"], [-1, -1])
    assert labels(open_dataset(tmp_path, "train")) == [0, 1]


# ---- folders of values


def hive(root: Path, key: str, values: Iterable[str], above: str = "") -> None:
    for number, value in enumerate(values):
        write(root / above / f"{key}={value}" / "part-0.parquet", {"image": images(2, 10 * number)})


def test_folders_of_values_are_labels_and_such_files_are_the_train_split(tmp_path: Path) -> None:
    hive(tmp_path / "numbers", "label", ["0", "1", "12", "__HIVE_DEFAULT_PARTITION__"])
    assert split_names(tmp_path / "numbers") == ["train"]
    numbers = open_dataset(tmp_path / "numbers", "train")
    assert (numbers.num_classes, numbers.unlabelled) == (13, 2)
    assert labels(numbers) == [0, 0, 1, 1, 12, 12, -1, -1]
    assert numbers.notes[0] == "images: column 'image'; labels: folders 'label=…'"
    for split, values in (("train", ["tabby%20cat", "dog"]), ("val", ["dog", "dev"])):
        hive(tmp_path / "names", "class", values, f"split={split}" if split == "train" else split)
    train, val = (open_dataset(tmp_path / "names", split) for split in ("train", "val"))
    assert train.classes == val.classes == ("dev", "dog", "tabby cat")
    assert sorted(map(str, named(train))) == ["dog", "dog", "tabby cat", "tabby cat"]
    assert pack(tmp_path / "names", tmp_path / "packed").classes == train.classes
    assert sorted(map(str, named(open_dataset(tmp_path / "packed", "val")))) == ["dev"] * 2 + ["dog"] * 2


def test_folders_of_values_by_another_name_are_named(tmp_path: Path) -> None:
    hive(tmp_path, "species", ["cat", "dog"])
    dataset = open_dataset(tmp_path, "train")
    assert (dataset.rows, dataset.labelled) == (4, False)
    assert "'species' looks like labels and is not read: choose it with label_column" in dataset.notes
    assert named(open_dataset(tmp_path, "train", Reading(label_column="species"))) == [
        "cat",
        "cat",
        "dog",
        "dog",
    ]


# ---- paths, empty parts, configurations


@pytest.mark.parametrize("statistics", [True, False])
def test_files_that_hold_paths_and_no_bytes_are_refused_at_once(tmp_path: Path, statistics: bool) -> None:
    paths = pa.array([{"bytes": None, "path": f"/data/cat/{i}.png"} for i in range(3)], HUB)
    write(tmp_path / "train.parquet", {"image": paths, "label": [0, 1, 2]}, write_statistics=statistics)
    refused(r"are not in it but referred to by path \(/data/cat/0.png\): write it with their bytes", tmp_path)
    write(tmp_path / "train.parquet", {"image": pa.nulls(3, pa.binary())}, write_statistics=statistics)
    refused("holds no images: every value of column 'image' is a null", tmp_path)


def test_some_images_without_bytes_are_counted(tmp_path: Path) -> None:
    some = pa.array(
        [{"bytes": None, "path": "a"}, *({"bytes": image(i), "path": "b"} for i in range(3))], HUB
    )
    write(tmp_path / "train.parquet", {"image": some})
    assert "1 of 4 images hold no bytes and cannot be read" in open_dataset(tmp_path, "train").notes


def test_empty_parts_are_passed_over_and_an_empty_split_only_refused_when_asked_for(tmp_path: Path) -> None:
    for part, rows in enumerate((0, 4, 0, 3)):
        columns = {
            "image": images(rows, 10 * part),
            "label": pa.array([i % 2 for i in range(rows)], pa.int64()),
        }
        write(tmp_path / f"train/part-0000{part}.parquet", columns)
    empty = {"image": images(0), "label": pa.array([], pa.int64())}
    write(tmp_path / "test.parquet", empty)
    assert split_names(tmp_path) == ["train"]
    dataset = open_dataset(tmp_path, "train")
    assert (dataset.rows, labels(dataset)) == (7, [0, 1, 0, 1, 0, 1, 0])
    assert "passed over, without rows: train/part-00000.parquet and 1 more" in dataset.notes
    assert "the split 'test' holds no rows" in dataset.notes
    refused("no file of its split 'test' holds any rows", tmp_path, "test")
    assert pack(tmp_path, tmp_path.with_name("packed")).splits["train"].rows == 7
    for part in (1, 3):
        write(tmp_path / f"train/part-0000{part}.parquet", empty)
    with pytest.raises(InputError, match="no Parquet file in it holds any rows"):
        split_names(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        ["meine-00000-of-00001.parquet"],
        ["part-0.snappy.parquet", "part-1.snappy.parquet"],
        ["bilder/meine_0.parquet", "bilder/meine_1.parquet"],
        ["0000.parquet", "0001.parquet"],
    ],
)
def test_files_that_name_no_split_and_share_a_name_are_train(tmp_path: Path, files: list[str]) -> None:
    source = tmp_path / "src"
    for number, file in enumerate(files):
        write(source / file, {"image": images(5, 10 * number), "label": [0, 1, 0, 1, 0]})
    assert split_names(source) == ["train"]
    dataset = open_dataset(source, "train")
    assert dataset.rows == 5 * len(files)
    assert "files name no split: all are train" in dataset.notes
    out = pack_with_progress(source, tmp_path / "packed", progress=False, validation_fraction=0.2)
    assert {split: each.rows for split, each in out.splits.items()} == {
        "train": 4 * len(files),
        "val": len(files),
    }


def test_the_name_that_files_share_still_opens_them(tmp_path: Path) -> None:
    write(tmp_path / "meine-00000-of-00001.parquet", {"image": images(2), "label": [0, 1]})
    old, new = open_dataset(tmp_path, "meine"), open_dataset(tmp_path, "train")
    assert old.split == "meine"
    assert old.fingerprint == new.fingerprint
    refused("has no split 'val', only train", tmp_path, "val")


def test_files_of_several_names_or_beside_a_split_keep_theirs(tmp_path: Path) -> None:
    for root, others in (("several", ["a.parquet", "b.parquet"]), ("beside", ["train.parquet", "a.parquet"])):
        for number, file in enumerate(others):
            write(tmp_path / root / file, {"image": images(2, 10 * number), "label": [0, 1]})
    assert sorted(split_names(tmp_path / "several")) == ["a", "b"]
    assert sorted(split_names(tmp_path / "beside")) == ["a", "train"]
    assert "files name no split: all are train" not in open_dataset(tmp_path / "beside", "train").notes
    with pytest.raises(InputError, match="is held out of 'train', the source has only a, b"):
        pack_with_progress(tmp_path / "several", tmp_path / "packed", progress=False, validation_fraction=0.5)
    assert not (tmp_path / "packed").exists()


def test_a_share_that_is_not_held_out_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    pack_with_progress(
        two_splits(tmp_path / "src", [0, 1], [0, 1]),
        tmp_path / "packed",
        progress=False,
        validation_fraction=0.5,
        say=said.append,
    )
    assert "the source has a split 'val' already, --validation-fraction is not used" in said[-1]


@pytest.mark.parametrize(
    "name", ["TRAIN.PARQUET", "Train-0000.parquet", "0000.parquet", "00000-of-00002.parquet"]
)
def test_files_of_train_are_known_in_any_case_and_without_a_name(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, {"image": images(2), "label": [0, 1]})
    assert split_names(tmp_path) == ["train"]
    assert "train     2 images" in describe(tmp_path)
    assert open_dataset(tmp_path, "Train").rows == 2
    assert pack(tmp_path, tmp_path / "../packed" / name).splits["train"].rows == 2


def test_numbered_files_are_parts_of_one_split(tmp_path: Path) -> None:
    for part in range(3):
        write(tmp_path / f"{part:04d}.parquet", {"image": images(2, 10 * part), "label": [0, 1]})
    assert open_dataset(tmp_path, "train").rows == 6


def test_tables_beside_the_images_are_no_splits_and_said(tmp_path: Path) -> None:
    write(tmp_path / "src/train.parquet", {"image": images(2), "label": [0, 1]})
    write(tmp_path / "src/captions.parquet", {"caption": ["a", "b"]})
    assert split_names(tmp_path / "src") == ["train"]
    said = "Parquet files without images: 1 (captions.parquet)"
    assert said in describe(tmp_path / "src")
    pack(tmp_path / "src", tmp_path / "out")
    assert said in describe(tmp_path / "out")
    assert said in describe_in_short(tmp_path / "src", "train", "val")
    (tmp_path / "src/train.parquet").unlink()
    with pytest.raises(InputError, match="needs one column 'image'"):
        describe(tmp_path / "src")


def test_files_that_spark_hides_are_counted_as_hidden(tmp_path: Path) -> None:
    write(tmp_path / "_train.parquet", {"image": images(2)})
    with pytest.raises(InputError, match=r"holds no images \(hidden files: 1\)"):
        describe(tmp_path)
    write(tmp_path / "val.parquet", {"image": images(2)})
    assert "hidden files: 1 (_train.parquet)" in describe(tmp_path)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("train/data-00000-of-00001.arrow", "write them as Parquet"),
        ("train.zip.001", "join the pieces"),
        ("train.z01", "join the pieces"),
        ("train.tar.partaa", "join the pieces"),
    ],
)
def test_what_could_be_made_readable_says_how(tmp_path: Path, name: str, fix: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    for ask in (lambda: describe(tmp_path), lambda: describe_in_short(tmp_path, "train", "val")):
        with pytest.raises(InputError, match=f"holds no images .*: {fix}"):
            ask()


def test_configurations_of_one_split_are_refused_and_one_can_be_opened(tmp_path: Path) -> None:
    for name, rows in (("full", 6), ("mini", 2)):
        write(tmp_path / name / "train-00000-of-00001.parquet", {"image": images(rows)})
    refused(f"holds the configurations full, mini, .* name one, {tmp_path}/full", tmp_path)
    assert open_dataset(tmp_path / "mini", "train").rows == 2
    for split in ("train", "test"):
        write(tmp_path / f"one/data/{split}-00000-of-00001.parquet", {"image": images(2)})
    assert open_dataset(tmp_path / "one", "train").rows == 2
    write(tmp_path / "apart/training_data/train.parquet", {"image": images(2)})
    write(tmp_path / "apart/held_out/val.parquet", {"image": images(2)})
    assert split_names(tmp_path / "apart") == ["val", "train"]


# ---- large row groups


@pytest.mark.parametrize("flat", [True, False])
def test_a_large_row_group_is_read_in_pieces_and_refused_where_it_must_be_whole(
    tmp_path: Path, flat: bool
) -> None:
    data = [image(seed) * 20 for seed in range(40)]
    column = pa.array(data) if flat else pa.array([{"bytes": item, "path": ""} for item in data], HUB)
    write(
        tmp_path / "train.parquet",
        {"image": column, "label": list(range(40))},
        row_group_size=30,
        use_dictionary=False,
    )
    dataset = open_dataset(tmp_path, "train")
    dataset.slice_bytes, dataset.whole_bytes, dataset.recent_bytes = 4 * len(data[0]), 20 * len(data[0]), 1
    order = [0, 3, 4, 29, 30, 39, 7, 6, 2]
    assert [(row.data, row.label) for row in dataset.read(order)] == [(data[i], i) for i in order]
    assert sum(len(piece.labels) for piece in dataset._recent.values()) <= 10  # pieces, not groups
    assert [row.data for row in pickle.loads(pickle.dumps(dataset)).read([38])] == [data[38]]
    with pytest.raises(
        InputError, match=r"train.parquet: row group 0 holds .* GB of images, and is read who"
    ):
        dataset.row_group(0)
    with pytest.raises(InputError, match="write row groups of about 100 rows"):
        dataset.require_whole_groups()
    assert len(dataset.row_group(1).labels) == 10


def test_a_training_whose_row_groups_hold_no_bytes_does_not_advise_to_pack(tmp_path: Path) -> None:
    column = pa.array(
        [{"bytes": None, "path": "a"}] * 2 + [{"bytes": image(i), "path": "b"} for i in range(2)], HUB
    )
    write(tmp_path / "train.parquet", {"image": column}, row_group_size=2)
    views = ViewsConfig(image_size=4)
    stream = TrainStream(
        open_dataset(tmp_path, "train"), views, partition=BatchPartition(4, 1, 1), seed=0, bad_image_limit=9
    )
    with stream, pytest.raises(InputError, match=r"\(holds no bytes\): write the images' bytes into it"):
        next(iter(stream))


# ---- what is said


def test_info_pack_and_training_say_what_was_read(tmp_path: Path) -> None:
    columns = {"img": images(6), "fine_label": [0, 1, 2, 3, 0, 1], "coarse_label": [0, 1] * 3}
    write(tmp_path / "set/train.parquet", columns)
    write(tmp_path / "set/test.parquet", {key: value[:0] for key, value in columns.items()})
    line = "'fine_label' and 'coarse_label' look like labels and are not read: choose one with label_column"
    told: list[str] = []
    pack_with_progress(tmp_path / "set", tmp_path / "packed", progress=False, say=told.append)
    texts = [
        describe(tmp_path / "set"),
        describe(tmp_path / "packed"),
        describe_in_short(tmp_path / "set", "train", "val"),
        *told,
    ]
    for text in texts:
        assert line in text
        assert "images: column 'img'; labels: none" in text
        assert "the split 'test' holds no rows" in text
    chosen = describe_in_short(tmp_path / "set", "train", "val", Reading(label_column="fine_label"))
    assert "labels: column 'fine_label'" in chosen
    two_splits(tmp_path / "some", [0, -1, 1, None], [0, 1])
    assert "train     4 images" in (text := describe(tmp_path / "some"))
    assert "2 of them without a label" in text
