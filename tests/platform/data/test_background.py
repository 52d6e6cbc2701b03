"""Which background a set is read with: its own, a recipe's, white; what sets of before keep."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mergevq.config import parse
from mergevq.errors import InputError
from mergevq_platform.data import (
    EvalBatches,
    Reading,
    ViewsConfig,
    contact_sheet,
    describe,
    make_views,
    open_dataset,
    pack,
    write_shapes,
)
from mergevq_platform.data.images.decoding import encode_png
from mergevq_platform.data.images.kinds import FormatCounts

SIDE = 16


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """Black above, transparent black below; and a grey image without alpha beside it."""
    folder = tmp_path / "drawings" / "train" / "a"
    folder.mkdir(parents=True)
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[: SIDE // 2, :, 3] = 255
    Image.fromarray(pixels).save(folder / "drawing.png")
    Image.new("RGB", (SIDE, SIDE), (90, 90, 90)).save(folder / "photograph.png")
    return tmp_path / "drawings"


def lower_half(path: Path, background: str | None = None) -> set[int]:
    """The values of the lower half of the drawing as evaluation, training and a row see them."""
    dataset = open_dataset(path, "train", Reading(background=background))
    seen = {int(image[0, -1, 0]) for image in EvalBatches(dataset, SIDE, 8).batch(0)["image"]}
    for row in dataset.read(range(dataset.rows)):
        image = dataset.image(row)
        view = make_views(image, ViewsConfig(image_size=SIDE), seed=0, epoch=0, sample=0)["image"]
        seen |= {int(view[-1, 0, 0]), image.getpixel((0, image.height - 1))[0]}
    return seen - {90}


def packed_before(directory: Path) -> None:
    """Take away from a manifest what was not in it before there were backgrounds."""
    tree = json.loads((directory / "manifest.json").read_text())
    del tree["background"]
    for split in tree["splits"].values():
        del split["kinds"]
    (directory / "manifest.json").write_text(json.dumps(tree))


def test_a_packed_set_is_read_on_the_background_of_its_manifest(drawings: Path, tmp_path: Path) -> None:
    for background, value in ((None, 255), ("Grey", 128)):
        directory = tmp_path / str(background)
        manifest = pack(drawings, directory, background=background, progress=False)
        assert manifest.background == (background or "white").lower()
        assert lower_half(directory) == {value}
        assert f"1 of 2 images with transparent pixels, on {manifest.background}" in describe(directory)
    with pytest.raises(InputError, match="'purple' is no background: give white, black, grey"):
        pack(drawings, tmp_path / "purple", background="purple", progress=False)
    with pytest.raises(InputError, match="already holds another"):
        pack(drawings, tmp_path / "Grey", progress=False)


def test_a_recipe_may_choose_another_background_where_alpha_is_still_there(
    drawings: Path, tmp_path: Path
) -> None:
    pack(drawings, tmp_path / "set", progress=False)
    assert lower_half(tmp_path / "set", "black") == {0}
    with pytest.raises(InputError, match="background"):
        parse(Reading, {"background": "purple"})


def test_another_background_than_that_of_flattened_images_is_refused(drawings: Path, tmp_path: Path) -> None:
    pack(drawings, tmp_path / "set", size=8, progress=False)
    assert lower_half(tmp_path / "set") == lower_half(tmp_path / "set", "#FFFFFF") == {255}
    with pytest.raises(
        InputError,
        match=r"data.background \(or --background\) is 'black', but .* packed at 8 px on white: .*--background black",
    ):
        open_dataset(tmp_path / "set", "train", Reading(background="black"))


def test_the_choice_is_free_where_no_image_is_transparent(drawings: Path, tmp_path: Path) -> None:
    (drawings / "train" / "a" / "drawing.png").unlink()
    pack(drawings, tmp_path / "set", size=8, progress=False)
    white = open_dataset(tmp_path / "set", "train")
    black = open_dataset(tmp_path / "set", "train", Reading(background="black"))
    assert white.fingerprint == black.fingerprint
    assert "transparent" not in describe(tmp_path / "set")


def test_a_set_packed_before_keeps_dropping_alpha_and_its_fingerprint_and_says_so(
    drawings: Path, tmp_path: Path
) -> None:
    manifest = pack(drawings, tmp_path / "set", progress=False)
    now = open_dataset(tmp_path / "set", "train").fingerprint
    packed_before(tmp_path / "set")
    shards = [[s.file, s.rows, s.sha256] for s in manifest.splits["train"].shards]
    before = open_dataset(tmp_path / "set", "train")
    assert before.fingerprint == hashlib.sha256(json.dumps(shards).encode()).hexdigest() != now
    assert before.background is None
    assert lower_half(tmp_path / "set") == {0}
    assert "packed before transparent pixels were composited: pack it again" in describe(tmp_path / "set")
    assert lower_half(tmp_path / "set", "white") == {255}, "its files still hold the alpha"
    assert open_dataset(tmp_path / "set", "train", Reading(background="white")).fingerprint == now


def test_flattened_images_of_before_have_no_other_background(drawings: Path, tmp_path: Path) -> None:
    pack(drawings, tmp_path / "set", size=8, progress=False)
    packed_before(tmp_path / "set")
    with pytest.raises(InputError, match="packed at 8 px before transparent pixels"):
        open_dataset(tmp_path / "set", "train", Reading(background="white"))
    again = pack(tmp_path / "set", tmp_path / "again", progress=False)
    assert again.background is None, "what was dropped is not there to be composited"
    assert "pack it again" in describe(tmp_path / "again")


def test_a_set_packed_from_a_packed_set_has_its_background(drawings: Path, tmp_path: Path) -> None:
    pack(drawings, tmp_path / "set", background="black", progress=False)
    assert pack(tmp_path / "set", tmp_path / "again", progress=False).background == "black"
    pack(tmp_path / "set", tmp_path / "white", background="white", progress=False)
    assert lower_half(tmp_path / "white") == {255}
    pack(drawings, tmp_path / "small", size=8, progress=False)
    with pytest.raises(InputError, match="--background"):
        pack(tmp_path / "small", tmp_path / "black", background="black", progress=False)


def test_sets_that_we_draw_are_opaque_and_keep_their_fingerprint(tmp_path: Path) -> None:
    write_shapes(tmp_path / "shapes", images=20, val_images=5, size=16)
    now = open_dataset(tmp_path / "shapes", "train")
    assert now.background == "white"
    black = open_dataset(tmp_path / "shapes", "train", Reading(background="black"))
    packed_before(tmp_path / "shapes")
    before = open_dataset(tmp_path / "shapes", "train")
    assert now.fingerprint == before.fingerprint == black.fingerprint
    assert "packed before" not in describe(tmp_path / "shapes")


def test_an_ordinary_set_has_the_fingerprint_that_it_had_before(tmp_path: Path) -> None:
    folder = tmp_path / "files" / "a"
    folder.mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (SIDE, SIDE), (index, 90, 90)).save(folder / f"{index}.png")
    pack(tmp_path / "files", tmp_path / "set", progress=False)
    now = open_dataset(tmp_path / "set", "train").fingerprint
    packed_before(tmp_path / "set")
    assert open_dataset(tmp_path / "set", "train").fingerprint == now


def test_scaled_greys_are_counted_and_said(tmp_path: Path) -> None:
    folder = tmp_path / "files" / "a"
    folder.mkdir(parents=True)
    ramp = np.linspace(0, 1, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    Image.fromarray(ramp).save(folder / "1.tif")
    Image.fromarray((ramp * 255).astype(np.int32)).save(folder / "2.tif")
    Image.fromarray(ramp - 1).save(folder / "3.tif")
    manifest = pack(tmp_path / "files", tmp_path / "set", progress=False)
    text = describe(tmp_path / "set")
    assert "scaled to 8 bits: 1 of floats of 0 to 1; 1 of 32-bit integers of 0 to 255" in text
    assert "3.tif is a grey image of floats from -1 to 0" in text
    assert manifest.splits["train"].kinds == FormatCounts(
        {"TIFF": 2}, 0, {"floats of 0 to 1": 1, "32-bit integers of 0 to 255": 1}
    )
    assert "formats   TIFF (2)" in text


def test_bare_parquet_is_read_on_white_and_keeps_its_fingerprint(drawings: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    images = [{"bytes": path.read_bytes(), "path": None} for path in sorted(drawings.rglob("*.png"))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(images, kind)}), tmp_path / "bare" / "train.parquet")
    assert lower_half(tmp_path / "bare") == {255}
    assert lower_half(tmp_path / "bare", "black") == {0}
    prints = {
        background: open_dataset(tmp_path / "bare", "train", Reading(background=background)).fingerprint
        for background in (None, "white", "#ffffff", "black", "#000000")
    }
    assert prints[None] == prints["white"] == prints["#ffffff"] != prints["black"] == prints["#000000"]


def test_a_contact_sheet_shows_the_background(drawings: Path, tmp_path: Path) -> None:
    pack(drawings, tmp_path / "set", background="#00ff00", progress=False)
    contact_sheet(open_dataset(tmp_path / "set", "train"), tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)
    assert np.any(np.all(pixels == (0, 255, 0), 1))


def test_opaque_images_are_packed_byte_for_byte_as_before(tmp_path: Path) -> None:
    folder = tmp_path / "files" / "a"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    (folder / "0.png").write_bytes(encode_png(pixels))
    pack(tmp_path / "files", tmp_path / "set", size=24, progress=False)
    dataset = open_dataset(tmp_path / "set", "train")
    (row,) = dataset.read([0])
    small = Image.fromarray(pixels).resize((36, 24), Image.Resampling.BICUBIC)
    assert row.data == encode_png(np.asarray(small))


def test_images_of_several_frames_are_counted_and_said(tmp_path: Path) -> None:
    folder = tmp_path / "src" / "train" / "a"
    folder.mkdir(parents=True)
    frames = [Image.new("RGB", (SIDE, SIDE), (shade, 0, 0)) for shade in (10, 200)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    frames[0].save(folder / "pages.tiff", save_all=True, append_images=frames[1:])
    for kind in ("gif", "tiff", "png"):
        frames[0].save(folder / f"one.{kind}")
    manifest = pack(tmp_path / "src", tmp_path / "set", progress=False)
    kinds = manifest.splits["train"].kinds
    assert kinds is not None
    assert kinds.several_frames == 2
    assert "frames    2 images of several frames or pages: the first is read" in describe(tmp_path / "set")
    assert open_dataset(tmp_path / "set", "train").image(
        open_dataset(tmp_path / "set", "train").read([0])[0]
    ).getpixel((0, 0)) == (10, 0, 0)
    for path in (folder / "film.gif", folder / "pages.tiff"):
        path.unlink()
    pack(tmp_path / "src", tmp_path / "plain", progress=False)
    assert '"several_frames"' not in (tmp_path / "plain" / "manifest.json").read_text(), "as it was before"
