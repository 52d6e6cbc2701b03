"""Packing: every kind of source, bad files, interruption, and the same result whoever does the work."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mergevq.errors import InputError
from mergevq_platform.data import Dataset, decode, describe, open_dataset
from mergevq_platform.data import pack as pack_with_progress
from mergevq_platform.data.pack_shard import PackedShard, PackJob, pack_shard
from mergevq_platform.data.parquet.manifest import Manifest
from mergevq_platform.distributed.sharded_map import RECORDS


def pack(source: Path, directory: Path, **options: Any) -> Manifest:
    return pack_with_progress(source, directory, progress=False, **options)


def image(seed: int, kind: str = "JPEG", size: tuple[int, int] = (12, 9)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def tree(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def imagefolder(classes: tuple[str, ...] = ("n01", "n02"), each: int = 12) -> dict[str, bytes]:
    return {
        f"{name}/{index}.JPEG": image(100 * number + index)
        for number, name in enumerate(classes)
        for index in range(each)
    }


def contents(dataset: Dataset) -> set[tuple[bytes | None, str | None]]:
    """(bytes, class) of every image."""
    rows = dataset.read(range(dataset.rows))
    return {(row.data, dataset.classes[row.label] if row.label >= 0 else None) for row in rows}


def expected(files: dict[str, bytes], prefix: str = "") -> set[tuple[bytes, str]]:
    return {
        (content, name.removeprefix(prefix).split("/")[0])
        for name, content in files.items()
        if name.startswith(prefix)
    }


def test_an_imagenet_tree_becomes_shards_with_its_classes(tmp_path: Path) -> None:
    files = {f"train/{name}": data for name, data in imagefolder().items()}
    files |= {f"val/{name}": data for name, data in imagefolder(each=3).items()}
    source = tree(tmp_path / "imagenet", {**files, "train/n01/notes.txt": b"x", ".hidden/a.jpg": b"x"})
    manifest = pack(source, tmp_path / "out", shard_rows=10, row_group_rows=4)
    train, val = (open_dataset(tmp_path / "out", split) for split in ("train", "val"))
    assert (train.rows, val.rows, train.classes) == (24, 6, ("n01", "n02"))
    assert contents(train) == expected(files, "train/")
    assert contents(val) == expected(files, "val/")
    assert [len(shard.row_groups) for shard in train.shards] == [3, 3, 1]
    assert manifest.source["ignored"] == 1
    assert not (tmp_path / "out" / RECORDS).exists()
    train.verify()


def test_row_groups_mix_the_classes(tmp_path: Path) -> None:
    pack(tree(tmp_path / "src", imagefolder(each=40)), tmp_path / "out", row_group_rows=16)
    dataset = open_dataset(tmp_path / "out", "train")
    for group in range(len(dataset.row_group_sizes)):
        assert 0.1 < dataset.row_group(group).labels.mean() < 0.9


@pytest.mark.parametrize("above", ["", "flowers/", "train/", "data/train/"])
def test_a_class_is_the_first_folder_that_tells_images_apart(tmp_path: Path, above: str) -> None:
    files = imagefolder(each=3)
    source = tree(tmp_path / "src", {f"{above}{name}": data for name, data in files.items()})
    pack(source, tmp_path / "out")
    assert contents(open_dataset(tmp_path / "out", "train")) == expected(files)


def test_a_folder_without_classes_is_packed_without_labels(tmp_path: Path) -> None:
    pack(
        tree(tmp_path / "src", {f"{index}.png": image(index, "PNG") for index in range(5)}),
        tmp_path / "out",
    )
    dataset = open_dataset(tmp_path / "out", "train")
    assert (dataset.rows, dataset.labelled, dataset.num_classes) == (5, False, 0)
    assert "no labels (no probe)" in describe(tmp_path / "out")


def test_imagenets_nested_tars_and_kaggles_label_file_are_read(tmp_path: Path) -> None:
    files = imagefolder(each=4)
    by_class = {
        f"{name}.tar": tar(
            {f"{name}_{key.split('/')[1]}": data for key, data in files.items() if key.startswith(name)}
        )
        for name in ("n01", "n02")
    }
    val = {f"ILSVRC2012_val_{index:08d}.JPEG": image(index) for index in range(4)}
    source = tree(
        tmp_path / "src", {"ILSVRC2012_img_train.tar": tar(by_class), "ILSVRC2012_img_val.tar": tar(val)}
    )
    pack(source, tmp_path / "bare")
    assert contents(open_dataset(tmp_path / "bare", "train")) == expected(files)
    assert contents(open_dataset(tmp_path / "bare", "val")) == {(data, None) for data in val.values()}

    labels = tmp_path / "LOC_val_solution.csv"
    lines = [f"{Path(name).stem},n0{1 + index % 2} 1 2 3 4 n02 5 6 7 8" for index, name in enumerate(val)]
    labels.write_text("\n".join(["ImageId,PredictionString", *lines]))
    pack(source, tmp_path / "out", labels=labels)
    assert contents(open_dataset(tmp_path / "out", "val")) == {
        (data, f"n0{1 + index % 2}") for index, data in enumerate(val.values())
    }


def test_labels_come_from_tar_names_or_from_folders_in_tars(tmp_path: Path) -> None:
    files = imagefolder(each=3)
    by_tar = {
        f"{name}.tar": tar({key.split("/")[1]: data for key, data in files.items() if key.startswith(name)})
        for name in ("n01", "n02")
    }
    names = sorted(files)
    by_folder = {
        f"part{part}.tar": tar({f"./set/{name}": files[name] for name in names[part::2]}) for part in range(2)
    }
    whole = gzip.compress(tar({f"train/{name}": data for name, data in files.items()}))
    for kind, source in (("tars", by_tar), ("folders", by_folder), ("packed", {"all.tar.gz": whole})):
        pack(tree(tmp_path / kind, source), tmp_path / f"{kind}-out")
        assert contents(open_dataset(tmp_path / f"{kind}-out", "train")) == expected(files), kind


def test_what_a_tar_should_not_hold_is_refused_and_listed(tmp_path: Path) -> None:
    stream = io.BytesIO(tar({"a/1.jpg": image(1), "../b/2.jpg": image(2), "/etc/3.jpg": image(3)}))
    with tarfile.open(fileobj=stream, mode="a") as archive:
        link = tarfile.TarInfo("a/4.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "x.tar").write_bytes(stream.getvalue())
    manifest = pack(tmp_path / "x.tar", tmp_path / "out")
    assert open_dataset(tmp_path / "out", "train").rows == 1
    reasons = {item.file: item.reason for item in manifest.splits["train"].skipped}
    assert reasons == {
        "x.tar/../b/2.jpg": "points outside of its tar",
        "x.tar//etc/3.jpg": "points outside of its tar",
        "x.tar/a/4.jpg": "is not a regular file",
    }


def test_bad_files_are_left_out_and_listed_with_the_reason(tmp_path: Path) -> None:
    files = imagefolder(each=6)
    bad = {
        "n01/truncated.jpg": image(1, size=(30, 30))[:900],
        "n01/text.jpg": b"this is not an image",
        "n02/empty.png": b"",
        "n02/bomb.png": image(2, "PNG", size=(40, 40)),
    }
    source = tree(tmp_path / "src", {**files, **bad})
    manifest = pack(source, tmp_path / "out", max_pixels=1000)
    assert contents(open_dataset(tmp_path / "out", "train")) == expected(files)
    reasons = {item.file: item.reason for item in manifest.splits["train"].skipped}
    assert set(reasons) == set(bad)
    assert "cannot be decoded" in reasons["n01/truncated.jpg"]
    assert reasons["n01/text.jpg"] == "is not an image that Pillow knows"
    assert reasons["n02/empty.png"] == "holds no bytes"
    assert reasons["n02/bomb.png"] == "has 40 x 40 pixels, more than the limit of 1000"
    text = describe(tmp_path / "out")
    for name in bad:
        assert name in text


def test_a_source_of_bad_files_only_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no usable image: the first, a.jpg, is not an image"):
        pack(tree(tmp_path / "src", {"a.jpg": b"x"}), tmp_path / "out")


def test_images_shrink_to_the_shorter_side_and_never_grow(tmp_path: Path) -> None:
    files = {
        "big.jpg": image(0, size=(64, 40)),
        "tall.png": image(1, "PNG", (40, 64)),
        "small.jpg": image(2, size=(12, 9)),
    }
    pack(tree(tmp_path / "src", files), tmp_path / "out", size=16)
    dataset = open_dataset(tmp_path / "out", "train")
    rows = [row.data for row in dataset.read(range(3))]
    assert {decode(data).size for data in rows} == {(26, 16), (16, 26), (12, 9)}
    assert files["small.jpg"] in rows
    assert {data[:2] for data in rows if data} == {b"\xff\xd8", b"\x89P"}
    assert dataset.size == 16


def test_images_shrink_until_they_cover_an_oblong_size(tmp_path: Path) -> None:
    files = {
        "big.jpg": image(0, size=(64, 40)),
        "tall.png": image(1, "PNG", (40, 64)),
        "flat.jpg": image(2, size=(99, 12)),
    }
    manifest = pack(tree(tmp_path / "src", files), tmp_path / "out", size=(12, 30))
    dataset = open_dataset(tmp_path / "out", "train")
    sizes = {decode(row.data).size for row in dataset.read(range(3))}
    assert sizes == {(30, 19), (30, 48), (99, 12)}, "width first, as Pillow says it"
    assert dataset.size == manifest.size == (12, 30)
    assert "12 x 30 px (covered)" in describe(tmp_path / "out", tmp_path / "sheet.png")
    assert pack(tmp_path / "src", tmp_path / "out", size=(12, 30)) == manifest, "the same pack: nothing to do"
    with pytest.raises(InputError, match="is no size: give"):
        pack(tmp_path / "src", tmp_path / "other", size=(12, 0))


def test_parquet_is_packed_again_with_labels_sizes_and_a_held_out_part(tmp_path: Path) -> None:
    files = imagefolder(each=20)
    pack(tree(tmp_path / "src", files), tmp_path / "first", shard_rows=16, row_group_rows=4)
    manifest = pack(
        tmp_path / "first", tmp_path / "second", shard_rows=20, row_group_rows=8, validation_fraction=0.25
    )
    train, val = (open_dataset(tmp_path / "second", split) for split in ("train", "val"))
    assert (train.rows, val.rows) == (30, 10)
    assert contents(train) | contents(val) == expected(files)
    assert manifest.classes == ("n01", "n02")
    assert contents(train).isdisjoint(contents(val))


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.parquet"))}


def test_classes_that_are_held_out_whole_are_said(tmp_path: Path) -> None:
    said: list[str] = []
    source = tree(tmp_path / "src", imagefolder(each=1))
    manifest = pack(source, tmp_path / "out", validation_fraction=0.4, say=said.append)
    val = open_dataset(tmp_path / "out", "val")
    alone = [val.classes[row.label] for row in val.read(range(val.rows))]
    assert (
        f"{len(alone)} of {len(manifest.classes)} classes have images in val alone ('{min(alone)}'" in said[1]
    )
    said.clear()
    pack(
        tree(tmp_path / "more", imagefolder(each=9)), tmp_path / "b", validation_fraction=0.2, say=said.append
    )
    assert len(said) == 1


def test_the_files_are_the_same_in_whatever_order_shards_are_made(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", imagefolder())

    def backwards(function: Callable[[PackJob], PackedShard], jobs: list[PackJob]) -> Iterator[PackedShard]:
        yield from reversed([function(job) for job in reversed(jobs)])

    pack(source, tmp_path / "one", shard_rows=5)
    pack(source, tmp_path / "two", shard_rows=5, map_jobs=backwards)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert len(bytes_of(tmp_path / "one")) == 5
    assert (
        open_dataset(tmp_path / "one", "train").fingerprint
        == open_dataset(tmp_path / "two", "train").fingerprint
    )
    pack(source, tmp_path / "three", shard_rows=5, seed=1)
    assert bytes_of(tmp_path / "one") != bytes_of(tmp_path / "three")


def test_a_pack_that_was_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", {**imagefolder(), "n01/bad.jpg": b"x"})
    made: list[str] = []

    def counting(function: Callable[[PackJob], PackedShard], jobs: list[PackJob]) -> Iterator[PackedShard]:
        for job in jobs:
            made.append(job.file)
            yield function(job)

    def cut_off(function: Callable[[PackJob], PackedShard], jobs: list[PackJob]) -> Iterable[PackedShard]:
        for number, part in enumerate(counting(function, jobs)):
            yield part
            if number == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", shard_rows=5, map_jobs=cut_off)
    with pytest.raises(InputError, match="a pack that has not ended"):
        open_dataset(tmp_path / "out", "train")
    # A finished shard that was lost since is made again.
    (tmp_path / "out" / "train-00001.parquet").unlink()
    killed = tmp_path / "out" / ".train-00003.parquet.99999.tmp"
    killed.write_bytes(b"half")
    pack(source, tmp_path / "out", shard_rows=5, map_jobs=counting)
    assert made == [f"train-0000{index}.parquet" for index in (0, 1, 2, 1, 3, 4)]
    assert not killed.exists()
    undisturbed = pack(source, tmp_path / "other", shard_rows=5)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "other")
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == json.loads(undisturbed.to_json())
    # Once it is whole, the same command does nothing, and another one is refused.
    pack(source, tmp_path / "out", shard_rows=5, map_jobs=counting)
    assert len(made) == 6
    with pytest.raises(InputError, match="already holds another image set"):
        pack(source, tmp_path / "out", shard_rows=5, size=4)


def test_a_pack_that_goes_on_with_other_settings_starts_over(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", imagefolder())

    def only_first(function: Callable[[PackJob], PackedShard], jobs: list[PackJob]) -> Iterator[PackedShard]:
        yield from map(function, jobs)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "out", shard_rows=3, map_jobs=only_first)
    pack(source, tmp_path / "out", shard_rows=12)
    assert sorted(bytes_of(tmp_path / "out")) == ["train-00000.parquet", "train-00001.parquet"]
    assert contents(open_dataset(tmp_path / "out", "train")) == expected(imagefolder())


@pytest.mark.ray
def test_packing_on_ray_makes_the_same_files(tmp_path: Path, ray_home: Path) -> None:
    source = tree(tmp_path / "src", {**imagefolder(), "n01/bad.jpg": b"x"})
    here = pack(source, tmp_path / "one", shard_rows=5)
    there = pack(source, tmp_path / "two", shard_rows=5, parallel=True)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")
    assert here == there


def test_what_cannot_be_packed_is_named_with_the_fix(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", imagefolder(each=2))

    def expect(message: str, source: Path, out: Path = tmp_path / "out", **options: Any) -> None:
        with pytest.raises(InputError, match=message) as raised:
            pack(source, out, **options)
        assert "\n" not in str(raised.value)
        assert not (out / "manifest.json").exists()

    expect("no source at .*nowhere", tmp_path / "nowhere")
    expect("neither a folder nor an archive", source / "n01/0.JPEG")
    expect("holds no images", tree(tmp_path / "texts", {"a.txt": b"x"}))
    (tmp_path / "link").symlink_to(source)
    expect("lies inside of", tmp_path / "link", source / "packed")
    expect("lies inside of", source, source / "packed")
    expect("is a file: name a directory", source, source / "n01/0.JPEG")
    expect("0 is no size", source, size=0)
    expect("validation_fraction is 1.5", source, validation_fraction=1.5)
    expect("leaves nothing of one", source, validation_fraction=0.01)
    expect("no labels at", source, labels=tmp_path / "none.csv")
    mixed = tree(tmp_path / "mixed", {**imagefolder(each=1), "3.jpg": image(3)})
    expect(
        r"'3.jpg' has no class but other images of 'train' have one \(1 of \d+ have none\): move it into",
        mixed,
    )
    tree(mixed, {"4.jpg": image(4)})
    expect(r"'3.jpg' has no class .* have one \(2 of \d+ have none\): move them into class folders", mixed)
    expect("source and directory are the same, .*: name another directory", mixed, mixed)
    stray = {
        "train/a/1.jpg": image(1),
        "train/b/1.jpg": image(1),
        "val/a/1.jpg": image(2),
        "val/c/1.jpg": image(2),
    }
    other = tree(tmp_path / "other", stray)
    expect("'val' has the class 'c', 'train' has not", other)
    (tmp_path / "cut.tar").write_bytes(tar(imagefolder())[:1000])
    expect("is not a whole tar", tmp_path / "cut.tar")
    (tmp_path / "cut.tar.gz").write_bytes(gzip.compress(tar(imagefolder()))[:1000])
    expect("is not whole", tmp_path / "cut.tar.gz")


def test_labels_that_there_are_are_kept_where_some_images_have_none(tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "".join(f"{index}.png,{'' if index % 3 == 2 else 'ab'[index % 2]}\n" for index in range(12))
    )
    files = {f"{index}.png": image(index, "PNG") for index in range(12)}
    manifest = pack(tree(tmp_path / "src", files), tmp_path / "out", labels=labels, shard_rows=5)
    assert (manifest.splits["train"].labelled, manifest.splits["train"].unlabelled) == (True, 4)
    assert Manifest.from_json(manifest.to_json(), "here") == manifest
    again = pack(tmp_path / "out", tmp_path / "again")
    assert again.splits["train"].unlabelled == 4
    dataset = open_dataset(tmp_path / "again", "train")
    assert sorted(row.label for row in dataset.read(range(12))) == [-1] * 4 + [0] * 4 + [1] * 4
    assert "4 of them without a label" in describe(tmp_path / "again")


def test_a_manifest_of_before_still_opens(tmp_path: Path) -> None:
    pack(tree(tmp_path / "src", imagefolder(each=2)), tmp_path / "out")
    path = tmp_path / "out/manifest.json"
    stored = json.loads(path.read_text())
    for split in stored["splits"].values():
        del split["unlabelled"], split["kinds"]
    del stored["source"]["understood"], stored["background"]
    path.write_text(json.dumps(stored))
    assert contents(open_dataset(tmp_path / "out", "train")) == expected(imagefolder(each=2))
    assert "4 images" in describe(tmp_path / "out")


def test_a_refused_source_leaves_nothing_behind(tmp_path: Path) -> None:
    source = tree(
        tmp_path / "src",
        {"x.tar.gz": gzip.compress(tar({"pass/1.jpg": image(1), "test/1.jpg": image(2)}))},
    )
    with pytest.raises(InputError, match="may be the split 'test'"):
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    tree(tmp_path / "out", {"other.parquet": b"x"})
    with pytest.raises(InputError, match="already holds Parquet files without a manifest"):
        pack(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["other.parquet"]


def test_one_shard_is_a_function_of_its_job(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", imagefolder(each=2))
    jobs: list[PackJob] = []

    def remember(function: Callable[[PackJob], PackedShard], given: list[PackJob]) -> Iterator[PackedShard]:
        jobs.extend(given)
        yield from map(function, given)

    pack(source, tmp_path / "out", map_jobs=remember)
    before = bytes_of(tmp_path / "out")
    part = pack_shard(jobs[0])
    assert part.shard is not None
    assert (part.images, part.shard.rows) == (4, 4)
    assert bytes_of(tmp_path / "out") == before
