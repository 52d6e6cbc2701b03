"""How a source is laid out: one decision for all of it, what it says, and what is refused because it may be two things."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from image_files import counts, image, images, tar, tree
from mergevq.errors import InputError
from mergevq_platform.data import describe, open_dataset, pack
from mergevq_platform.data.parquet.directory import split_names
from mergevq_platform.data.sources.folder_levels import split_in, split_named


def packed(source: Path, **options: Any) -> tuple[dict[str, dict[str | None, int]], str]:
    """Classes and counts of each split of a packed source, and what was said before packing."""
    said: list[str] = []
    out = source.with_name(source.name + "-packed")
    pack(source, out, progress=False, say=said.append, **options)
    return {split: counts(open_dataset(out, split)) for split in split_names(out)}, "\n".join(said)


def refusal(source: Path, **options: Any) -> str:
    """The message of a refused source: one line, and nothing is left behind."""
    out = source.with_name(source.name + "-packed")
    with pytest.raises(InputError) as error:
        pack(source, out, progress=False, **options)
    assert "\n" not in str(error.value)
    assert not out.exists()
    return str(error.value)


PARQUET = pa.table({"file_name": ["cat/0.png"], "year": [2019]})
IMAGES_IN_PARQUET = pa.table({"image": pa.array([{"bytes": image(1), "path": "a"}]), "label": [0]})


def parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


# ---- folders and what lies beside them


@pytest.mark.parametrize("name", ["devkit.tar.gz", "train/papers.TAR", "train/cat/x.zip", "broken.tgz"])
def test_an_archive_without_images_does_not_hide_folders(tmp_path: Path, name: str) -> None:
    contents = {"devkit.tar.gz": tar({"readme.txt": b"x"}, "w:gz"), "broken.tgz": b"x" * 600}
    empty = contents.get(name, tar({"readme.txt": b"x"}))
    source = tree(tmp_path / "src", {**images("train/cat", "train/dog", "val/cat"), name: empty})
    splits, said = packed(source)
    assert splits == {"train": {"cat": 2, "dog": 2}, "val": {"cat": 2}}
    assert f"1 ({name})" in said
    assert "archives" in said


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tar.bz2", "tar.xz", "tgz"])
def test_an_archive_with_images_beside_folders_is_two_readings(tmp_path: Path, ending: str) -> None:
    mode = {"tar": "w", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}.get(ending, "w:gz")
    archive = {f"val.{ending}": tar(images("cat", "dog", each=1), mode)}
    source = tree(tmp_path / "src", {**images("train/cat", "train/dog"), **archive})
    message = refusal(source)
    assert "4 image files (train/cat/0.png)" in message
    assert f"val.{ending}" in message
    assert "--layout folders or --layout archives" in message
    splits, said = packed(source, layout="folders")
    assert splits == {"train": {"cat": 2, "dog": 2}}
    assert f"archives with images: 1 (val.{ending})" in said


def test_parquet_without_images_does_not_hide_folders(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", images("train/cat", "train/dog"))
    parquet(source / "train/metadata.parquet", PARQUET)
    splits, said = packed(source)
    assert splits == {"train": {"cat": 2, "dog": 2}}
    assert "Parquet files without images: 1 (train/metadata.parquet)" in said
    parquet(source / "train.parquet", IMAGES_IN_PARQUET)
    assert "--layout folders or --layout parquet" in refusal(tree(source.rename(tmp_path / "both"), {}))


def test_what_is_not_used_is_counted_by_reason_and_kept(tmp_path: Path) -> None:
    others = {
        "a/x.heic": b"x",
        "a/y.HEIC": b"x",
        "notes.txt": b"x",
        ".DS_Store": b"x",
        "b/Thumbs.db": b"x",
        "README": b"x",
    }
    source = tree(tmp_path / "src", {**images("a", "b"), **others})
    _, said = packed(source)
    for text in (
        "files ending .heic: 2 (a/x.heic, …)",
        "files ending .txt: 1 (notes.txt)",
        "files without an ending that are no images: 1 (README)",
        "hidden files: 2",
    ):
        assert text in said
        assert text in describe(tmp_path / "src-packed")
        assert text in describe(source)
    manifest = json.loads((tmp_path / "src-packed/manifest.json").read_text())
    assert manifest["source"]["ignored"] == 4


def test_every_ending_that_pillow_opens_is_packed(tmp_path: Path) -> None:
    files = {
        "a/0.jfif": image(0, "JPEG"),
        "b/0.avif": image(1, "AVIF", (32, 32)),
        "c/0": image(2),
        "d/0.JP2": image(3, "JPEG2000"),
    }
    splits, _ = packed(tree(tmp_path / "src", files))
    assert splits == {"train": {"a": 1, "b": 1, "c": 1, "d": 1}}


def test_a_split_that_is_a_link_is_packed(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", images("train/a", "train/b"))
    (source / "val").symlink_to("train", target_is_directory=True)
    assert packed(source)[0] == {"train": {"a": 2, "b": 2}, "val": {"a": 2, "b": 2}}


def test_an_empty_class_folder_is_said(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", images("train/cat", "train/dog"))
    (source / "train/emu").mkdir()
    assert "not used  empty folders: 1 (train/emu)" in packed(source)[1]


def test_file_names_that_are_no_utf_8_are_shown_by_their_bytes(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", images("dog"))
    odd = os.fsdecode(b"caf\xe9")
    tree(source, {f"{odd}/{odd}.png": image(1), f"{odd}/{odd}.txt": b"x"})
    splits, said = packed(source)
    assert splits == {"train": {"dog": 2, r"caf\xe9": 1}}
    assert r"files ending .txt: 1 (caf\xe9/caf\xe9.txt)" in said
    said.encode()


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", {"a.npz": b"x", "b.npz": b"x", "c.txt": b"x"})
    assert "holds no images (files ending .npz: 2, files ending .txt: 1)" in refusal(source)
    with pytest.raises(InputError, match="holds no images"):
        describe(source)
    assert "unpack them first" in refusal(
        tree(tmp_path / "seven", {"x.7z": b"7z\xbc\xaf\x27\x1c" + bytes(99)})
    )


def test_info_of_what_is_not_packed_says_what_packing_would_understand(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", {**images("train/cat", "train/dog"), "train.csv": b"x"})
    text = describe(source)
    _, said = packed(source)
    assert text.splitlines()[1:-1] == said.splitlines()[1:]
    assert f"mergevq data pack {source} DIR" in text
    assert "classes   2: cat (2), dog (2)" in text


# ---- splits


@pytest.mark.parametrize(
    ("classes", "name", "split"),
    [
        (("prod", "dev", "staging"), "dev", "val"),
        (("pass", "test"), "test", "test"),
        (("bus", "car", "train"), "train", "train"),
        (("valid", "invalid"), "valid", "val"),
        (("Training", "gym"), "Training", "train"),
        (("cat/left", "dog/test"), "dog/test", "test"),
    ],
)
def test_a_class_called_like_a_split_is_two_readings(
    tmp_path: Path, classes: tuple[str, ...], name: str, split: str
) -> None:
    source = tree(tmp_path / "src", images(*classes))
    message = refusal(source)
    assert f"'{name}' may be the split '{split}' or a class" in message
    assert "--splits none" in message
    splits, _ = packed(source, folder_splits=["none"])
    assert splits == {"train": {name.split("/")[0]: 2 for name in classes}}


def test_folders_beside_splits_are_left_out_where_the_splits_are_named(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", images("train/a", "train/b", "validation/a", "val/a", "extra/a"))
    assert "may be the split" in refusal(source)
    splits, said = packed(source, folder_splits=["train", "validation"])
    assert splits == {"train": {"a": 2, "b": 2}, "val": {"a": 2}}
    assert "images outside of the splits' folders: 4" in said
    assert "val is validation" in said
    assert "no folder of images is called 'trian'" in refusal(
        source.rename(tmp_path / "x"), folder_splits=["trian"]
    )


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    message = refusal(tree(tmp_path / "src", images("train/a", "train/b", "val/a", "valid/a")))
    assert "'val' and 'valid' both mean the split 'val'" in message


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("training_set/training_set/{}", "test_set/test_set/{}", "test"),
        ("train2017/{}", "val2017/{}", "val"),
        ("images_train/{}", "Valid_Set/{}", "val"),
        ("set/Train/{}", "set/TEST/{}", "test"),
        ("train/images/{}", "val/{}", "val"),
        ("train/{}", "val/images/{}", "val"),
    ],
)
def test_splits_are_known_by_the_names_that_sets_give_them(
    tmp_path: Path, train: str, other: str, split: str
) -> None:
    names = [place.format(name) for place in (train, other) for name in ("cats", "dogs")]
    splits, _ = packed(tree(tmp_path / "src", images(*names)))
    assert splits == {name: {"cats": 2, "dogs": 2} for name in ("train", split)}


@pytest.mark.parametrize("name", ["trainval", "train_val2018"])
def test_training_and_validation_together_are_train(tmp_path: Path, name: str) -> None:
    files = images(f"{name}/cat", f"{name}/dog", "test/cat", "test/dog")
    splits, said = packed(tree(tmp_path / "src", files))
    assert splits == {"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 2}}
    assert f"train is {name}" in said
    both = tree(tmp_path / "both", {**files, **images("train/cat")})
    assert "both mean the split 'train'" in refusal(both)


def test_splits_below_the_classes_are_splits(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", images("cat/train", "cat/test", "dog/train", "dog/test"))
    assert packed(source)[0] == {"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 2}}


def test_folders_shared_above_the_splits_are_no_class(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", {**images("images/train", "images/val"), "labels/train/0.txt": b"0 0 0"})
    assert packed(source)[0] == {"train": {None: 2}, "val": {None: 2}}


@pytest.mark.parametrize(
    "name", ["station", "train station", "trainer", "latest", "evaluate", "été-test", "datum", "images"]
)
def test_other_names_mean_no_split(name: str) -> None:
    assert split_named(name) is None


def test_an_archives_name_may_say_its_split_in_any_word() -> None:
    assert [
        split_in(name)
        for name in (
            "ILSVRC2012_img_val",
            "train-000012",
            "food101-test",
            "train_val2018",
            "n01440764",
            "contest",
        )
    ] == [
        "val",
        "train",
        "test",
        "train",
        None,
        None,
    ]


# ---- classes


def test_the_depth_of_classes_is_that_of_train(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", images("train/cat", "train/dog", "val/cat/day1", "val/cat/day2", each=1))
    splits, said = packed(source)
    assert splits == {"train": {"cat": 1, "dog": 1}, "val": {"cat": 2}}
    assert "depth 2: the folders like train/cat" in said
    archived = {"all.tar": tar(images("train/cat", "train/dog", "val/cat/day1", "val/cat/day2", each=1))}
    assert packed(tree(tmp_path / "tar", archived))[0] == splits


def test_a_split_in_one_folder_that_is_no_class_can_be_labelled_or_left_out(tmp_path: Path) -> None:
    files = images("train/n01/images", "train/n02/images", "val/images", "test/images")
    source = tree(tmp_path / "src", files)
    message = refusal(source)
    assert "the images of 'test' lie in the one folder 'images', 'train' has no such class" in message
    assert "--splits with the other folders' names leaves them out" in message
    message = refusal(source, folder_splits=["train", "val"])
    assert "'val' lie in the one folder 'images'" in message
    assert "--labels says their classes" in message
    tree(source, {"val/val_annotations.txt": b"0.png\tn02\t0\t1\n1.png\tn02\t0\t1\n"})
    splits, _ = packed(
        source, folder_splits=["train", "val"], labels=source / "val/val_annotations.txt", label_column="2"
    )
    assert splits == {"train": {"n01": 2, "n02": 2}, "val": {"n02": 2}}


def test_the_level_of_classes_is_said_and_can_be_chosen(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", images("train/cat/day1", "train/cat/day2"))
    splits, said = packed(source)
    assert splits == {"train": {"day1": 2, "day2": 2}}
    assert "depth 3: the folders like train/cat/day1; --class-depth chooses another" in said
    again = source.rename(tmp_path / "again")
    splits, said = packed(again, class_depth=2)
    assert splits == {"train": {"cat": 4}}
    assert "one class: no probe" in said
    assert "it may be 2 or 3" in refusal(again.rename(tmp_path / "third"), class_depth=1)


def test_layout_flat_takes_no_folder_for_a_class(tmp_path: Path) -> None:
    splits, said = packed(tree(tmp_path / "src", images("train/00", "train/01", "val/00")), layout="flat")
    assert splits == {"train": {None: 4}, "val": {None: 2}}
    assert "none: no probe" in said


def test_names_of_classes_are_compared_in_one_form(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", images("train/caf\u00e9", "train/the", "val/cafe\u0301", "val/the"))
    assert packed(source)[0] == {split: {"caf\u00e9": 2, "the": 2} for split in ("train", "val")}
    inner = {"train.tar": tar(images("caf\u00e9", "the")), "val.tar": tar(images("cafe\u0301", "the"))}
    assert packed(tree(tmp_path / "tars", inner))[0] == {
        s: {"caf\u00e9": 2, "the": 2} for s in ("train", "val")
    }


def test_a_loose_image_beside_class_folders_is_refused(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", {**images("train/cat", "train/dog"), "train/cover.png": image(9)})
    assert "'train/cover.png' has no class but other images of 'train' have one" in refusal(source)


def test_columns_are_of_tables_only(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", images("a", "b"))
    assert "--label-column x: image files have no columns" in refusal(source, label_column="x")
    assert "--image-column x: only Parquet" in refusal(source, image_column="x")
    parquet(tmp_path / "set/train.parquet", IMAGES_IN_PARQUET)
    assert "--class-depth is for image files" in refusal(tmp_path / "set", class_depth=1)
