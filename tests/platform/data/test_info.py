"""The description of an image set and its contact sheet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from image_files import images, tree
from mergevq.errors import InputError
from mergevq_platform.data import (
    Reading,
    contact_sheet,
    describe,
    describe_in_short,
    open_dataset,
    write_shapes,
)
from mergevq_platform.data.images.decoding import ImageDecodeError, decode, encode_png
from mergevq_platform.data.pack import pack
from mergevq_platform.data.parquet.shards import ImageRecord, write_set
from mergevq_platform.data.sources.choices import Choices


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("info") / "shapes"
    write_shapes(directory, images=150, val_images=30, size=16)
    return directory


def test_the_description_has_counts_classes_shards_and_fingerprints(shapes: Path) -> None:
    text = describe(shapes)
    assert "train     150 images in 1 shard" in text
    assert "val       30 images in 1 shard" in text
    assert "row groups of 22-128" in text
    counts = open_dataset(shapes, "train").class_images()
    assert (len(counts), sum(counts), min(counts)) == (12, 150, 12)
    assert f"12: disc ({counts[0]}), ring ({counts[1]}), square ({counts[2]})" in text
    assert open_dataset(shapes, "train").fingerprint[:12] in text
    assert "16 px (shorter side), PNG" in text
    with pytest.raises(InputError, match="no data at"):
        describe(shapes / "none")


def test_what_a_training_reads_is_said_in_short(shapes: Path, tmp_path: Path) -> None:
    text = describe_in_short(shapes, "train", "val")
    assert text.startswith(f"data: {shapes}: train 150 images, val 30 images; classes 12: disc, ring, square")
    assert "no other: " in describe_in_short(shapes, "train", "other")
    source = tree(tmp_path / "images", {**images("train/a", "train/b"), "train/x.heic": b"x"})
    with pytest.raises(InputError, match=r"holds 4 image files .* not packed: use DIR of `mergevq data pack"):
        describe_in_short(source, "train", "val")
    pack(source, tmp_path / "packed", progress=False)
    assert "not used  files ending .heic: 1 (train/x.heic)" in describe_in_short(
        tmp_path / "packed", "train", "val"
    )
    (tmp_path / "packed/manifest.json").unlink()
    (tmp_path / "packed/notes.md").write_text("x")
    assert "not used  files ending .md: 1 (notes.md)" in describe_in_short(
        tmp_path / "packed", "train", "val"
    )


def test_the_command_that_packs_repeats_what_decides_the_reading(tmp_path: Path) -> None:
    source = tree(
        tmp_path / "my images", {f"{i}.png": encode_png(np.full((4, 4, 3), i, np.uint8)) for i in range(4)}
    )
    labels = tmp_path / "L.csv"
    labels.write_text("file,class,kind\n" + "".join(f"{i}.png,c{i % 2},k\n" for i in range(4)))
    choices = Choices(labels=labels, reading=Reading(label_column="class", background="#c0c0c0"))
    text = describe(source, choices=choices)
    assert text.endswith(
        f"  next      mergevq data pack '{source}' DIR --labels {labels} --label-column class --background '#c0c0c0', then use DIR"
    )
    choices = Choices(layout="folders", splits=("a b", "c"), class_depth=1, labels=labels)
    assert choices.as_options() == f" --layout folders --class-depth 1 --labels {labels} --splits 'a b' c"
    assert Choices().as_options() == ""


def test_a_file_beside_images_that_may_hold_labels_says_how_it_is_read(tmp_path: Path) -> None:
    source = tree(tmp_path / "src", {**images("a", "b"), "klassen.txt": b"x", "README.md": b"x"})
    hint = "(a labels file? --labels NAME reads it)"
    assert f"not used  files ending .txt: 1 (klassen.txt) {hint}" in describe(source)
    (source / "klassen.txt").rename(source / "README.txt")
    assert hint not in describe(source)
    for i in range(20):
        (source / f"a/{i}.txt").write_text("a caption")
    assert hint not in describe(source)


def test_the_first_split_with_labels_names_the_classes(tmp_path: Path) -> None:
    grey = encode_png(np.full((8, 8, 3), 128, dtype=np.uint8))
    splits = {
        "test": [ImageRecord(grey, "a.png", -1)],
        "train": [ImageRecord(grey, "b.png", 0), ImageRecord(grey, "c.png", 1)],
    }
    write_set(tmp_path / "set", splits, ("cat", "dog"), size=8, source={})
    (tmp_path / "set/manifest.json").unlink()
    text = describe(tmp_path / "set", sheet=tmp_path / "sheet.png")
    assert "classes   2: cat (1), dog (1)" in text
    assert "no labels (no probe)" in text


def test_images_are_counted_by_class_whatever_the_column_holds(tmp_path: Path) -> None:
    data = pa.array([encode_png(np.zeros((4, 4, 3), dtype=np.uint8))] * 5)
    for name, labels in (("names", ["b", "a", None, "a", "a"]), ("numbers", [1, 0, -1, 0, 0])):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"image": data, "label": labels}), tmp_path / name / "train.parquet")
        assert open_dataset(tmp_path / name, "train").class_images() == (3, 1)
        assert "1 of them without a label" in describe(tmp_path / name)
    for label, rows in ((0, 3), (2, 1)):
        (tmp_path / f"folders/label={label}").mkdir(parents=True)
        pq.write_table(pa.table({"image": data[:rows]}), tmp_path / f"folders/label={label}/part-0.parquet")
    assert open_dataset(tmp_path / "folders", "train").class_images() == (3, 0, 1)


def test_the_contact_sheet_shows_each_class_in_turn(shapes: Path, tmp_path: Path) -> None:
    text = describe(shapes, sheet=tmp_path / "sheet.png")
    assert str(tmp_path / "sheet.png") in text
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == 2 * 24 + 12 * 96 + 11 * 10
    # The first tile is a disc of the set, pixel by pixel.
    tile = sheet[64 : 64 + 96 : 6, 24 : 24 + 96 : 6]
    dataset = open_dataset(shapes, "train")
    discs = [np.asarray(decode(row.data)) for row in dataset.read(range(dataset.rows)) if row.label == 0]
    assert any(np.array_equal(tile, disc) for disc in discs)


def test_the_contact_sheet_has_letters_beyond_english(tmp_path: Path) -> None:
    grey = encode_png(np.full((8, 8, 3), 128, dtype=np.uint8))
    captions = []
    for number, name in enumerate("éčжλß"):
        out = tmp_path / f"{number}/set"
        write_set(out, {"train": [ImageRecord(grey, "a.png", 0)]}, (name,), size=8, source={})
        contact_sheet(open_dataset(out, "train"), tmp_path / "sheet.png")
        captions.append(np.asarray(Image.open(tmp_path / "sheet.png"))[64 + 96 :].tobytes())
    assert len(set(captions)) == len(captions)  # a letter that a font lacks is a box, the same for each


def test_a_sheet_shows_unlabelled_sets_and_marks_unreadable_images(tmp_path: Path) -> None:
    grey = np.full((8, 8, 3), 128, dtype=np.uint8)
    records = [ImageRecord(encode_png(grey), "a.png", 0), ImageRecord(b"broken", "b.png", 0)]
    write_set(tmp_path / "set", {"train": records}, ("a",), size=8, source={})
    contact_sheet(open_dataset(tmp_path / "set", "train"), tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)
    assert np.any(np.all(sheet == (128, 128, 128), 1))
    assert np.any(np.all(sheet == (0xB0, 0x00, 0x20), 1))


def test_a_sheet_shows_the_middle_of_thin_images(tmp_path: Path) -> None:
    thin = np.full((1, 1_000_000, 3), 128, dtype=np.uint8)
    long = np.full((8, 300_000, 3), 200, dtype=np.uint8)
    records = [ImageRecord(encode_png(pixels), "a.png", 0) for pixels in (thin, long)]
    write_set(tmp_path / "set", {"train": records}, ("a",), size=8, source={})
    contact_sheet(open_dataset(tmp_path / "set", "train"), tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)
    for grey in (128, 200):
        assert np.all(sheet == grey, 1).sum() >= 96 * 96


def test_every_mode_of_image_becomes_rgb() -> None:
    import io

    def encoded(image: Image.Image, kind: str) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind)
        return stream.getvalue()

    grey16 = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    for image, kind, pixel in (
        (Image.new("L", (4, 4), 200), "PNG", (200, 200, 200)),
        (Image.new("RGBA", (4, 4), (1, 2, 3, 128)), "PNG", (128, 128, 129)),  # on white
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 0, 0, 0)), "JPEG", (255, 255, 255)),
        (grey16, "PNG", (128, 128, 128)),
    ):
        decoded = decode(encoded(image, kind))
        assert decoded.mode == "RGB"
        assert decoded.getpixel((1, 1)) == pixel


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "no bytes"),
        (b"", "no bytes"),
        (b"GIF89a", "cannot be decoded|not an image"),
        (b"hello", "not an image"),
    ],
)
def test_what_is_no_image_is_a_bad_image(data: bytes | None, reason: str) -> None:
    with pytest.raises(ImageDecodeError, match=reason):
        decode(data)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked() -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(ImageDecodeError, match="more pixels than the limit"):
        decode(bomb)
