"""Archives of images: of every compression, within others, of classes, of WebDataset samples."""

from __future__ import annotations

import io
import json
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from image_files import counts, image, images, tar, tree, zipped
from mergevq.errors import InputError
from mergevq_platform.data import describe, open_dataset, pack
from mergevq_platform.data.parquet.directory import split_names
from mergevq_platform.data.sources.webdataset import key_and_field

CAT_AND_DOG = {"train": {"cat": 2, "dog": 2}}


def packed(source: Path, **options: Any) -> tuple[dict[str, dict[str | None, int]], str]:
    said: list[str] = []
    out = source.with_name(source.name + "-packed")
    pack(source, out, progress=False, say=said.append, **options)
    return {split: counts(open_dataset(out, split)) for split in split_names(out)}, "\n".join(said)


def refusal(source: Path, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        pack(source, source.with_name("refused"), progress=False, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def zstd(data: bytes) -> bytes:
    compressed = pa.compress(data, codec="zstd", asbytes=True)
    assert isinstance(compressed, bytes)
    return compressed


FOLDERS = images("cat", "dog")
COMPRESSED = {
    "tar": tar(FOLDERS),
    "tar.gz": tar(FOLDERS, "w:gz"),
    "tar.bz2": tar(FOLDERS, "w:bz2"),
    "tar.xz": tar(FOLDERS, "w:xz"),
    "tar.zst": zstd(tar(FOLDERS)),
    "zip": zipped(FOLDERS),
}


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("name", ["train.{}", "TRAIN.{}", "train.tar", "train"])
def test_an_archive_is_read_whatever_it_is_called(tmp_path: Path, kind: str, name: str) -> None:
    file = name.format(kind.upper() if name.isupper() else kind)
    source = tree(tmp_path / "src", {file: COMPRESSED[kind]})
    splits, said = packed(source)
    assert splits == CAT_AND_DOG
    assert ("unpacked" in said) == (kind != "tar")


@pytest.mark.parametrize("kind", COMPRESSED)
@pytest.mark.parametrize("name", ["n01.{}", "N01.{}"])
def test_an_archive_within_another_is_entered(tmp_path: Path, kind: str, name: str) -> None:
    flat = images("", each=3)
    inner = {
        "tar": tar(flat), "tar.gz": tar(flat, "w:gz"), "tar.bz2": tar(flat, "w:bz2"),
        "tar.xz": tar(flat, "w:xz"), "tar.zst": zstd(tar(flat)), "zip": zipped(flat),
    }[kind]  # fmt: skip
    file = name.format(kind.upper() if name[0] == "N" else kind)
    source = tree(tmp_path / "src", {"all.tar": tar({file: inner, "n02.tar": tar(images("", each=2))})})
    splits, _ = packed(source)
    assert splits == {"train": {name[:3]: 3, "n02": 2}}


def test_what_is_too_deep_or_of_another_kind_is_named(tmp_path: Path) -> None:
    deep = zipped({"b.zip": zipped({"c.zip": zipped(FOLDERS)})})
    inner = {"a.zip": deep, "x.rar": b"Rar!\x1a\x07\x00" + bytes(100), **FOLDERS}
    splits, said = packed(tree(tmp_path / "src", {"all.tar": tar(inner)}))
    assert splits == CAT_AND_DOG
    assert "archives too deep within others: 1 (all.tar/a.zip/b.zip/c.zip)" in said
    assert "rar archives, which are not read: 1 (all.tar/x.rar)" in said


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "zip"])
def test_an_archive_that_was_cut_off_is_named(tmp_path: Path, kind: str) -> None:
    data = COMPRESSED[kind]
    (tmp_path / f"cut.{kind}").write_bytes(data[: len(data) // 2])
    assert f"cut.{kind} is not whole" in refusal(tmp_path / f"cut.{kind}")
    nested = tree(tmp_path / "src", {"all.tar": tar({f"n01.{kind}": data[: len(data) // 2], **FOLDERS})})
    assert f"all.tar/n01.{kind} is not whole" in refusal(nested)


def test_a_zip_leads_nowhere_outside(tmp_path: Path) -> None:
    stream = io.BytesIO(zipped({**FOLDERS, "../../evil.png": image(7), "/etc/evil.png": image(8)}))
    with zipfile.ZipFile(stream, "a") as archive:
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    source = tree(tmp_path / "src", {"x.zip": stream.getvalue()})
    splits, said = packed(source)
    assert splits == CAT_AND_DOG
    assert "refused   3 members" in said
    assert not list(tmp_path.rglob("evil.png"))
    text = describe(tmp_path / "src-packed")
    assert "x.zip/../../evil.png points outside of its tar" in text
    assert "x.zip/cat/link.png is not a regular file" in text


def test_an_encrypted_zip_is_named(tmp_path: Path) -> None:
    data = bytearray(zipped(FOLDERS))
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := data.find(mark, start)) >= 0:
            data[start + at] |= 1
            start += 4
    assert "is encrypted" in refusal(tree(tmp_path / "src", {"x.zip": bytes(data)}))


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("folder", ["__MACOSX/cat", "cat/@eaDir/0.png", "dog/.ipynb_checkpoints"])
def test_what_is_hidden_in_folders_is_hidden_in_archives(tmp_path: Path, kind: str, folder: str) -> None:
    files = {**FOLDERS, f"{folder}/0.png": image(9)}
    splits, said = packed(tree(tmp_path / "src", {f"x.{kind}": {"tar": tar, "zip": zipped}[kind](files)}))
    assert splits == CAT_AND_DOG
    assert f"hidden files: 1 (x.{kind}/{folder}/0.png)" in said


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_of_members_of_one_name_the_last_is_packed(tmp_path: Path, kind: str) -> None:
    stream = io.BytesIO()
    newer = image(9)
    if kind == "tar":
        stream.write(tar({**FOLDERS, "./cat/0.png": newer}))
    else:
        stream.write(zipped(FOLDERS))
        with zipfile.ZipFile(stream, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("cat/0.png", newer)
    source = tree(tmp_path / "src", {f"x.{kind}": stream.getvalue()})
    splits, said = packed(source)
    assert splits == CAT_AND_DOG
    assert f"members that a later one of the same name replaces: 1 (x.{kind}/cat/0.png)" in said
    dataset = open_dataset(tmp_path / "src-packed", "train")
    stored = [row.data for row in dataset.read(range(dataset.rows))]
    assert newer in stored
    assert FOLDERS["cat/0.png"] not in stored


@pytest.mark.parametrize("kind", ["", ".gz"])
@pytest.mark.parametrize("inner", [False, True])
def test_archives_that_were_joined_are_read_to_the_end(tmp_path: Path, kind: str, inner: bool) -> None:
    parts = [tar(files, f"w:{kind[1:]}") for files in (images("cat"), images("dog"), images("emu", each=3))]
    data = b"".join(parts)
    files = {"all.tar": tar({f"x.tar{kind}": data, "y.txt": b"y"})} if inner else {f"x.tar{kind}": data}
    splits, _ = packed(tree(tmp_path / "src", files))
    assert splits == {"train": {"cat": 2, "dog": 2, "emu": 3}}


def test_zeros_are_an_archive_only_by_their_name(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", {"data": bytes(2048), "x.tar": tar({**FOLDERS, "cat/data": bytes(2048)})})
    splits, said = packed(source)
    assert splits == CAT_AND_DOG
    assert "files without an ending that are no images: 2" in said


def test_a_zip_with_the_separators_of_windows_has_folders(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in {**FOLDERS, "empty/": b""}.items():
            entry = zipfile.ZipInfo()
            entry.filename, entry.create_system = name.replace("/", "\\"), 0
            archive.writestr(entry, data)
    splits, _ = packed(tree(tmp_path / "src", {"x.zip": stream.getvalue()}))
    assert splits == CAT_AND_DOG


def test_two_members_of_one_field_are_refused(tmp_path: Path) -> None:
    files = {"0.jpg": image(0, "JPEG"), "0.JPG": image(1, "JPEG"), "0.cls": b"0"}
    message = refusal(tree(tmp_path / "src", {"a.tar": tar(files)}))
    assert "a.tar/0.jpg and a.tar/0.JPG are both '.jpg' of one sample" in message


def test_names_that_are_no_utf_8_are_shown_by_their_bytes(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name, data in images("café", "dog").items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    splits, said = packed(tree(tmp_path / "src", {"x.tar": stream.getvalue()}))
    assert splits == {"train": {r"caf\xe9": 2, "dog": 2}}
    said.encode()


def test_the_same_archive_under_two_endings_is_refused(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", {"train.tar": COMPRESSED["tar"], "train.tar.gz": COMPRESSED["tar.gz"]})
    assert "train.tar and train.tar.gz are perhaps the same archive twice" in refusal(source)


def test_archives_named_after_splits_and_classes(tmp_path: Path) -> None:
    flat = {name: tar(images("images")) for name in ("cat.tar", "dog.tar")}
    assert packed(tree(tmp_path / "classes", flat))[0] == CAT_AND_DOG
    splits = {
        "train.zip": zipped(images("train/cat", "train/dog")),
        "test.zip": zipped(images("test", each=3)),
    }
    assert packed(tree(tmp_path / "splits", splits))[0] == {**CAT_AND_DOG, "test": {None: 3}}
    crash = tree(tmp_path / "crash", {"pass.tar": tar(images("")), "test.tar": tar(images(""))})
    assert "'test' may be the split 'test' or a class beside 'pass'" in refusal(crash)
    assert packed(crash, folder_splits=["none"])[0] == {"train": {"pass": 2, "test": 2}}


def test_numbered_archives_of_images_are_no_classes_unless_chosen(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", {f"{shard:05d}.tar": tar(images("")) for shard in range(3)})
    splits, said = packed(source)
    assert splits == {"train": {None: 6}}
    assert "numbered archives of images without classes (--layout archives" in said
    splits, _ = packed(source.rename(tmp_path / "chosen"), layout="archives")
    assert splits == {"train": {"00000": 2, "00001": 2, "00002": 2}}


# ---- WebDataset


def samples(labels: list[bytes | None], field: str = "cls", prefix: str = "s") -> dict[str, bytes]:
    members = {}
    for index, label in enumerate(labels):
        members[f"{prefix}{index}.jpg"] = image(index, "JPEG")
        if label is not None:
            members[f"{prefix}{index}.{field}"] = label
    return members


def test_a_key_ends_at_the_first_dot_after_the_folder() -> None:
    assert key_and_field("x0.v2.jpg") == ("x0", "v2.jpg")
    assert key_and_field("a.b/x0.JPG") == ("a.b/x0", "jpg")
    assert key_and_field("README") == ("README", "")


def test_the_number_in_a_cls_member_is_the_class(tmp_path: Path) -> None:
    archives = {
        f"{split}-00000{shard}.tar": tar(
            {**samples([b"0", b"3\n"]), "x.v2.jpg": image(9, "JPEG"), "x.v2.cls": b"1"}
        )
        for split in ("train", "val")
        for shard in range(2)
    }
    splits, said = packed(tree(tmp_path / "src", archives))
    assert splits == {split: {"0": 2, "1": 2, "3": 2} for split in ("train", "val")}
    assert open_dataset(tmp_path / "src-packed", "train").classes == ("0", "1", "2", "3")
    assert "WebDataset" in said
    assert "the .cls members" in said


def test_whole_floats_are_numbers_and_none_reads_no_class(tmp_path: Path) -> None:
    files = {f"{i}.jpg": image(i, "JPEG") for i in range(2)}
    files |= {f"{i}.cls": f"{i}.0\n".encode() for i in range(2)}
    files |= {f"{i}.json": json.dumps({"label": 1.0 + i}).encode() for i in range(2)}
    source = tree(tmp_path / "src", {"train-00000.tar": tar(files)})
    for column, classes in ((None, {"0": 1, "1": 1}), ("label", {"1": 1, "2": 1}), ("none", {None: 2})):
        assert packed(source, label_column=column)[0] == {"train": classes}
        shutil.rmtree(tmp_path / "src-packed")


def test_names_in_cls_members_are_classes_and_what_lacks_one_is_counted(tmp_path: Path) -> None:
    members = {**samples([b"cat", "cafe\u0301".encode(), None, b"-1", b""]), "lost.cls": b"dog"}
    splits, said = packed(tree(tmp_path / "src", {"a.tar": tar(members)}))
    assert splits == {"train": {"cat": 1, "caf\u00e9": 1, None: 3}}
    assert "5 images, 3 of them without a label" in said
    assert "3 images without one (a.tar/s2.jpg)" in said
    assert ".cls members without an image: 1 (a.tar/lost.cls)" in said
    text = describe(tmp_path / "src-packed")
    assert "3 of them without a label" in text


def test_json_and_text_are_no_labels_unless_named(tmp_path: Path) -> None:
    labels = [json.dumps({"label": index % 2, "caption": "x"}).encode() for index in range(4)]
    members = {**samples(labels, "json"), **{f"s{index}.txt": b"a photo" for index in range(4)}}
    source = tree(tmp_path / "src", {"shard-000000.tar": tar(members)})
    splits, said = packed(source)
    assert splits == {"train": {None: 4}}
    assert "hold 'label', which is not read: --label-column label does" in said
    assert "files ending .txt: 4" in said
    splits, _ = packed(source.rename(tmp_path / "named"), label_column="label")
    assert splits == {"train": {"0": 2, "1": 2}}
    assert "no member holds a label 'nope'" in refusal(tmp_path / "named", label_column="nope")


@pytest.mark.parametrize("names", [["00000.tar", "00001.tar"], ["cc3m_00.tar"], ["a.tar", "b.tar"]])
def test_shards_of_captions_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    members = tar({**samples([b"{}", b"{}"], "json"), "s0.txt": b"a photo"})
    splits, said = packed(tree(tmp_path / "src", dict.fromkeys(names, members)))
    assert splits == {"train": {None: 2 * len(names)}}
    assert "WebDataset" in said
    assert "none: no .cls members" in said


def test_class_folders_with_json_beside_images_stay_class_folders(tmp_path: Path) -> None:
    members = {**FOLDERS, **{name.replace(".png", ".json"): b"{}" for name in FOLDERS}}
    splits, said = packed(tree(tmp_path / "src", {"all.tar": tar(members)}))
    assert splits == CAT_AND_DOG
    assert "files ending .json: 4" in said


def test_two_images_of_one_sample_are_refused(tmp_path: Path) -> None:
    members = {"1.jpg": image(0, "JPEG"), "1.png": image(1), "1.cls": b"0"}
    message = refusal(tree(tmp_path / "src", {"a.tar": tar(members)}))
    assert "a.tar/1.jpg and a.tar/1.png are images of one sample '1'" in message
