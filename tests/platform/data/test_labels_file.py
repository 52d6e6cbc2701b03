"""Labels files: which row is of which image, which column is the class, and what is said where they do not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from image_files import counts, images, table, tar, tree
from mergevq.errors import InputError
from mergevq.text_files import read_text
from mergevq_platform.data import open_dataset, pack
from mergevq_platform.data.parquet.directory import split_names


def packed(source: Path, labels: Path, **options: Any) -> tuple[dict[str, dict[str | None, int]], str]:
    said: list[str] = []
    out = source.with_name("packed")
    pack(source, out, labels=labels, progress=False, say=said.append, **options)
    return {split: counts(open_dataset(out, split)) for split in split_names(out)}, "\n".join(said)


def refusal(source: Path, labels: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        pack(source, source.with_name("packed"), labels=labels, progress=False, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


FILES = [f"{index}.png" for index in range(4)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tree(tmp_path / "images", images("", each=4))


def rows(*classes: str, names: list[str] = FILES, separator: str = ",") -> list[str]:
    return [f"{name}{separator}{label}" for name, label in zip(names, classes, strict=True)]


def test_a_class_is_the_whole_field_of_a_labels_file(source: Path) -> None:
    classes = ("golden retriever", " golden eagle ", '"cat, tabby"', "Löwe")
    splits, said = packed(source, table(source.with_name("l.csv"), ["file,class", *rows(*classes)]))
    assert splits == {"train": {"golden retriever": 1, "golden eagle": 1, "cat, tabby": 1, "Löwe": 1}}
    assert "l.csv, column 'class': 4 of 4 images have a row" in said


def test_only_a_class_of_imagenet_is_cut_from_its_boxes(source: Path) -> None:
    boxes = ("n01440764 111 108 407 330 ", "n01440765 1 2 3 4 n01440765 5 6 7 8", "n1 2", "n01440764")
    splits, _ = packed(
        source,
        table(
            source.with_name("l.csv"), ["ImageId,PredictionString", *rows(*boxes, names=["0", "1", "2", "3"])]
        ),
    )
    assert splits == {"train": {"n01440764": 2, "n01440765": 1, "n1 2": 1}}


@pytest.mark.parametrize("separator", [",", ";", "\t", " ", "|"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_and_marks_of_spreadsheets_are_read(
    source: Path, separator: str, header: bool, encoding: str
) -> None:
    lines = [f"file{separator}class"] * header + rows("a", "b", "a", "b", separator=separator)
    splits, _ = packed(source, table(source.with_name("l.csv"), lines, encoding))
    assert splits == {"train": {"a": 2, "b": 2}}


def test_text_that_is_not_utf_8_is_named_with_its_line(source: Path) -> None:
    path = table(source.with_name("l.csv"), rows("a", "b", "Löwe", "a"), "latin-1")
    assert refusal(source, path).endswith("l.csv is not UTF-8 (line 3): save it as UTF-8")
    with pytest.raises(InputError, match=r"is not UTF-8 \(line 3\)"):
        read_text(path)


@pytest.mark.parametrize(
    "above", ["images/", "./", "images\\", "/home/me/images/", "C:\\data\\images\\", "../images/"]
)
def test_a_path_from_above_the_source_is_understood(source: Path, above: str) -> None:
    path = table(source.with_name("l.csv"), rows("a", "b", "a", "b", names=[above + name for name in FILES]))
    assert packed(source, path)[0] == {"train": {"a": 2, "b": 2}}


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    source = tree(tmp_path / "images", images("s1", "s2"))
    names = [f"{folder}/{index}.png" for folder in ("s1", "s2") for index in range(2)]
    path = table(tmp_path / "l.csv", rows("cat", "cat", "dog", "dog", names=names))
    assert packed(source, path)[0] == {"train": {"cat": 2, "dog": 2}}
    message = refusal(source, table(tmp_path / "bare.csv", rows("a", "b", names=["0.png", "1.png"])))
    assert "'0.png' may be 's1/0.png', 's2/0.png'" in message
    other = table(tmp_path / "other.csv", rows("a", "b", names=["s3/0.png", "s3/1.png"]))
    assert "names none of the 4 images: it says 's3/0.png', they are called 's1/0.png'" in refusal(
        source, other
    )


def test_members_of_archives_are_named_with_or_without_the_archive(tmp_path: Path) -> None:
    source = tree(tmp_path / "tars", {"all.tar": tar(images("s1", each=4))})
    names = ["s1/0.png", "all.tar/s1/1.png", "2", "data/s1/3.png"]
    path = table(tmp_path / "l.csv", rows("a", "b", "a", "b", names=names))
    assert packed(source, path)[0] == {"train": {"a": 2, "b": 2}}


@pytest.mark.parametrize(
    "lines",
    [
        ["class,file", *(f"{'ab'[index % 2]},{name}" for index, name in enumerate(FILES))],
        [",file,class", *(f"{index},{name},{'ab'[index % 2]}" for index, name in enumerate(FILES))],
        [f"{index},{name},{'ab'[index % 2]}" for index, name in enumerate(FILES)],
        ["file,width,Label", *(f"{name},7,{'ab'[index % 2]}" for index, name in enumerate(FILES))],
    ],
)
def test_the_columns_are_told_by_what_they_hold(source: Path, lines: list[str]) -> None:
    assert packed(source, table(source.with_name("l.csv"), lines))[0] == {"train": {"a": 2, "b": 2}}


def test_a_column_that_nobody_can_tell_is_asked_for(source: Path) -> None:
    lines = ["file,shape,kind", *(f"{name},round,{'ab'[index % 2]}" for index, name in enumerate(FILES))]
    path = table(source.with_name("l.csv"), lines)
    assert "has the columns 'file', 'shape', 'kind': say with --label-column" in refusal(source, path)
    assert "has no column 'sort'" in refusal(source, path, label_column="sort")
    assert packed(source, path, label_column="kind")[0] == {"train": {"a": 2, "b": 2}}


def test_images_without_a_row_and_rows_without_an_image_are_counted(source: Path) -> None:
    short = table(source.with_name("short.csv"), rows("a", "b", "a", names=FILES[:3]))
    assert "has no row for '3.png' (1 of 4 images of 'train' have none)" in refusal(source, short)
    long = table(source.with_name("long.csv"), [*rows("a", "b", "a", ""), "old.png,a", "older.png,b"])
    splits, said = packed(source, long)
    assert splits == {"train": {"a": 2, "b": 1, None: 1}}
    assert "4 of 4 images have a row; 2 rows without an image ('old.png')" in said
    assert "4 images, 1 of them without a label" in said


def test_two_rows_of_one_image_must_agree(source: Path) -> None:
    agreeing = rows("a", "b", "a", "b")
    path = table(source.with_name("l.csv"), [*agreeing, "images/1.png,c"])
    assert "gives 'images/1.png' the class 'c' and, as '1.png', 'b'" in refusal(source, path)
    assert packed(source, table(path, [*agreeing, "1.png,b"]))[0] == {"train": {"a": 2, "b": 2}}


def test_numbers_are_classes_in_their_order_and_negative_ones_are_none(source: Path) -> None:
    splits, _ = packed(source, table(source.with_name("l.csv"), rows("10", "9", "-1", "2")))
    assert splits == {"train": {"10": 1, "9": 1, "2": 1, None: 1}}
    assert open_dataset(source.with_name("packed"), "train").classes == ("2", "9", "10")


def test_whole_floats_are_their_numbers_and_nan_is_no_class(source: Path) -> None:
    splits, _ = packed(source, table(source.with_name("l.csv"), rows("10.0", "9", "-1.0", "NaN")))
    assert splits == {"train": {"10": 1, "9": 1, None: 2}}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("0", "1", "0.25", "1"), "column 2 holds 0.25, which is no class number"),
        (("-1", "1", "1", "-1"), "holds -1 and 1 alone, and negative numbers mean no label: write 0 for -1"),
    ],
)
def test_numbers_that_are_no_classes_are_refused(
    source: Path, classes: tuple[str, ...], message: str
) -> None:
    assert message in refusal(source, table(source.with_name("l.csv"), rows(*classes)))


@pytest.mark.parametrize(
    "head", [[], ["4", "x y"], ["name x y"], ["# names and numbers", "#name x y"]], ids=lambda head: len(head)
)
def test_several_numbers_between_blanks_are_several_columns(source: Path, head: list[str]) -> None:
    lines = [f"{name}  {index % 2} {-index}" for index, name in enumerate(FILES)]
    path = table(source.with_name("list.txt"), [*head, *lines])
    assert "has the columns" in refusal(source, path)
    assert packed(source, path, label_column="2")[0] == {"train": {"0": 2, "1": 2}}
    if head and not head[0].startswith("#"):
        shutil.rmtree(source.with_name("packed"))
        assert "column 'x'" in packed(source, path, label_column="x")[1]


def test_words_between_blanks_are_one_class(source: Path) -> None:
    lines = [f"{FILES[0]} golden retriever", f"{FILES[1]} cat", f"{FILES[2]} 7 8", f"{FILES[3]} cat"]
    splits, _ = packed(source, table(source.with_name("l.txt"), lines))
    assert splits == {"train": {"golden retriever": 1, "cat": 2, "7 8": 1}}


@pytest.mark.parametrize("lines", [["id,file", *(f"{i},{f}" for i, f in enumerate(FILES))],
                                   [f"{i} {f}" for i, f in enumerate(FILES, 1)]])  # fmt: skip
def test_numbers_of_rows_are_no_classes_unless_chosen(source: Path, lines: list[str]) -> None:
    path = table(source.with_name("images.txt"), lines)
    message = refusal(source, path)
    assert "none of classes" in message
    assert "numbers the rows" in message
    chosen = message.rpartition("--label-column ")[2].split()[0]
    assert len(packed(source, path, label_column=chosen)[0]["train"]) == 4


def test_names_in_a_labels_file_are_first_of_images_beside_it(tmp_path: Path) -> None:
    source = tree(tmp_path / "images", images("train", "test/deeper"))
    lines = ["file_name,label", "0.png,a", "1.png,b"]
    for split, other in (("train", "test"), ("test", "train")):
        path = table(source / split / "metadata.csv", lines)
        splits, _ = packed(source, path)
        assert splits == {split: {"a": 1, "b": 1}, other: {None: 2}}
        shutil.rmtree(tmp_path / "packed")
        path.unlink()
    assert "name one of the folders as the source" in refusal(source, table(source / "l.csv", lines))


def test_a_column_of_splits_is_said_to_be_none(source: Path) -> None:
    lines = ["file,Split,label", *(f"{name},test,{'ab'[index % 2]}" for index, name in enumerate(FILES))]
    _, said = packed(source, table(source.with_name("l.csv"), lines))
    assert "column 'label': 4 of 4 images have a row; column 'Split' is not read: folders are splits" in said


def test_labels_in_json_are_named(source: Path) -> None:
    assert "is JSON: write it as a CSV" in refusal(
        source, table(source.with_name("l.json"), ['{"0.png": 1}'])
    )


def test_a_labels_file_of_one_split_leaves_the_folders_of_the_other(tmp_path: Path) -> None:
    source = tree(
        tmp_path / "images",
        {
            **images("train/cat", "train/dog"),
            **{f"val/v{i}.png": d for i, d in enumerate(images("").values())},
        },
    )
    path = table(tmp_path / "l.csv", ["id,label", "v0,dog", "v1,cat"])
    assert packed(source, path)[0] == {"train": {"cat": 2, "dog": 2}, "val": {"cat": 1, "dog": 1}}


def test_names_are_compared_composed(tmp_path: Path) -> None:
    source = tree(tmp_path / "images", images("cafe\u0301", "the"))
    names = [f"{folder}/{index}.png" for folder in ("caf\u00e9", "the") for index in range(2)]
    path = table(tmp_path / "l.csv", rows("\u00e9", "e\u0301", "b", "b", names=names))
    assert packed(source, path)[0] == {"train": {"\u00e9": 2, "b": 2}}
