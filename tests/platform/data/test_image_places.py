"""Images as they lie in people's folders and npz files: all of them, none of ours, and what is left out is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mergevq.errors import InputError
from mergevq.metrics.features import RandomFeaturesConfig
from mergevq_platform import cli, figures
from mergevq_platform.data import contact_sheet, open_dataset, open_images, pack


def put(root: Path, *names: str, side: int = 16) -> None:
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".npz", ".json"):
            path.write_text("no image")
        else:
            Image.new("RGB", (side, side), (10 * index, 90, 90)).save(path)


def test_every_ending_that_pillow_opens_is_an_image(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.tif", "c.JPG", "d.gif", "e.jfif", "f.avif", "g.webp", "h.bmp", "i.ppm")
    assert open_images(str(tmp_path), 8).images == 9


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path, *(f"all/{name}/{index}.png" for name in "abc" for index in range(3)))
    (tmp_path / "chosen").mkdir()
    for name in "ab":
        (tmp_path / "chosen" / name).symlink_to(Path("..", "all", name), target_is_directory=True)
    assert open_images(str(tmp_path / "chosen"), 8).images == 6
    put(tmp_path, "chosen/c/0.png")
    (tmp_path / "chosen" / "c" / "back").symlink_to("..", target_is_directory=True)
    opened = open_images(str(tmp_path / "chosen"), 8)
    assert (opened.images, opened.classes) == (7, ("a", "b", "c"))


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "notes.txt", "codes/0.npz", "codes/1.npz")
    (said,) = open_images(str(tmp_path), 8).said
    assert said.endswith(
        "left out 3 files (2 .npz, 1 .txt: codes/0.npz, codes/1.npz, notes.txt), which are no images"
    )
    with pytest.raises(InputError, match=r"holds no images; it holds 2 files \(2 \.npz: 0\.npz, 1\.npz\)"):
        open_images(str(tmp_path / "codes"), 8)


def test_our_own_sheets_and_figures_are_no_images(tmp_path: Path) -> None:
    put(tmp_path / "made", *(f"images/{index:06d}.png" for index in range(12)))
    put(tmp_path / "made", "contact_sheet.png", side=200)  # of a version that did not mark them
    pack(tmp_path / "made" / "images", tmp_path / "packed", progress=False)
    contact_sheet(open_dataset(tmp_path / "packed", "train"), tmp_path / "made" / "overview.png")
    figures.save_png(
        figures.image_rows({"a": [np.zeros((16, 16, 3), np.uint8)]}), tmp_path / "made" / "grid.png"
    )
    opened = open_images(str(tmp_path / "made"), 8)
    assert (opened.images, opened.size) == (12, 16)
    (said,) = opened.said
    for name in ("contact_sheet.png", "overview.png", "grid.png", "figures made by mergevq"):
        assert name in said
    assert open_images(str(tmp_path / "made"), 8, size=8).images == 12


def test_images_of_another_shape_are_said_to_be_cut(tmp_path: Path) -> None:
    for index in range(2):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{index}.png")
    whole = open_images(str(tmp_path), 8)
    assert (whole.size, whole.said) == ((20, 30), ()), "height first; one size for all may be any"
    assert whole.batch(0)["image"].shape == (2, 3, 20, 30)
    opened = open_images(str(tmp_path), 8, size=16)
    assert opened.said[0].endswith("2 of 2 images are no squares: their middle is judged")
    assert open_images(str(tmp_path), 8, size=(10, 15)).said == (), "the same shape: nothing is cut"
    oblong = open_images(str(tmp_path), 8, size=(20, 10))
    assert oblong.said[0].endswith("2 of 2 images are not of the shape 20 x 10: their middle is judged")
    Image.new("RGB", (20, 30)).save(tmp_path / "2.png")
    with pytest.raises(InputError, match=r"2\.png has 20 x 30 pixels, 0\.png 30 x 20: .*--size S"):
        open_images(str(tmp_path), 8)


def test_a_table_beside_image_files_does_not_hide_them(tmp_path: Path) -> None:
    put(tmp_path / "set", "cat/0.png", "dog/0.png")
    pq.write_table(
        pa.table({"file": ["cat/0.png"], "caption": ["a cat"]}), tmp_path / "set" / "metadata.parquet"
    )
    opened = open_images(str(tmp_path / "set"), 8)
    assert (opened.images, opened.classes) == (2, ("cat", "dog"))
    assert "metadata.parquet" in opened.said[0]


def test_image_files_and_parquet_files_of_images_in_one_folder_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "set", "figure.png")
    image = pa.array([{"bytes": (tmp_path / "set" / "figure.png").read_bytes(), "path": None}])
    pq.write_table(pa.table({"image": image}), tmp_path / "set" / "train-0.parquet")
    with pytest.raises(
        InputError, match=r"both image files \(figure\.png.*Parquet files .*\(train-0\.parquet"
    ):
        open_images(str(tmp_path / "set"), 8, size=16)
    (tmp_path / "set" / "figure.png").unlink()
    assert open_images(str(tmp_path / "set"), 8, size=16).images == 1


def test_transparent_images_are_judged_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.png")
    opened = open_images(str(tmp_path), 8)
    assert opened.batch(0)["image"].min() == 255
    assert opened.background == "white"


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.eye(3)[np.arange(12) % 3], r"float64 \(12, 3\)"),
        (np.eye(3, dtype=np.int64)[np.arange(12) % 3], r"int64 \(12, 3\)"),
        (np.arange(11), r"int64 \(11,\)"),
        (np.arange(12) / 2, r"float64 \(12,\)"),
        (np.full(12, np.nan), r"float64 \(12,\)"),
        (np.arange(12) - 3, "holds -3"),
        (np.arange(12) * 10**9, "holds 11000000000"),
    ],
)
def test_labels_of_an_npz_must_be_class_numbers(tmp_path: Path, labels: np.ndarray, found: str) -> None:
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((12, 16, 16, 3), np.uint8), arr_1=labels)
    with pytest.raises(InputError, match=rf"arr_1 of .*samples\.npz .*{found}.*class numbers \(12,\)"):
        open_images(str(tmp_path / "samples.npz"), 8)


def test_an_npz_of_python_objects_is_refused_without_advice_to_load_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", arr_0=np.array([{"image": 1}], dtype=object))
    with pytest.raises(InputError, match="it holds Python objects") as refused:
        open_images(str(tmp_path / "samples.npz"), 8)
    assert "pickle" not in str(refused.value)


def test_files_of_other_kinds_are_refused_by_what_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "images", "a.png", "b.png")
    images = np.zeros((12, 16, 16, 3), np.uint8)
    np.savez("samples.npz", samples=images)
    np.savez("moments.npz", mean=np.zeros(4), cov=np.eye(4))
    np.savez("statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.save("samples.npy", images)
    for name in ("samples.pt", "samples.pkl", "broken.npz"):
        Path(name).write_bytes(b"\x80\x04]\x94.")
    Image.new("RGB", (16, 16)).save("alone.png")
    for option, place, said in (
        ("--images", "samples.npz", "--images: samples.npz holds samples: rename its arrays, images are arr_0"),
        ("--reference", "moments.npz", "--reference: moments.npz holds mean, cov: .*statistics in mu and sigma"),
        ("--images", "statistics.npz", "--images: statistics.npz holds statistics .*go with --reference"),
        ("--images", "samples.npy", "--images: samples.npy is a .npy file: name a folder of images, .*npz with arr_0"),
        ("--reference", "samples.pt", r"--reference: samples.pt is a .pt file: .*statistics \(mu and sigma\)"),
        ("--images", "samples.pkl", "samples.pkl is a .pkl file"),
        ("--images", "alone.png", "alone.png is a .png file: name a folder"),
        ("--images", "broken.npz", "--images: broken.npz is no npz"),
        ("--images", "nowhere", "--images: there is nothing at nowhere"),
        ("--reference", "nowhere.npz", "--reference: there is nothing at nowhere.npz"),
    ):  # fmt: skip
        images = ["--images", "images"] if option == "--reference" else []
        assert cli.run(["evaluate", *images, option, place, "--no-cache"]) == 2
        err = capsys.readouterr().err
        import re

        assert re.search(said, err), err
        assert "data.path" not in err


def test_of_one_image_nothing_is_said_without_a_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "images", "only.png")
    assert cli.run(["evaluate", "--images", "images"]) == 2
    assert "nothing can be said of 1 image of images without a reference" in capsys.readouterr().err


def test_answers_of_dropped_alpha_are_not_taken_for_composited_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergevq_platform.evaluation.images import ImageSetsEvaluator
    from mergevq_platform.evaluation.images_worker import ImageSetsSpec
    from mergevq_platform.evaluation.passes import Passes

    for index in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGBA", (16, 16), (255, index, 0, 0)).save(tmp_path / "images" / f"{index}.png")
    keys = []

    class Cache:
        def through(self, key: dict, jobs: object, ask: object) -> dict:
            keys.append(key)
            return {"pool": np.zeros((3, 4)), "label": np.zeros(3)}

    spec = ImageSetsSpec(
        images=str(tmp_path / "images"), reference=None, extractor=RandomFeaturesConfig(), device="cpu"
    )
    evaluator = ImageSetsEvaluator(spec, Passes(lambda jobs: [], Cache()))  # type: ignore[arg-type]
    assert evaluator.found
    assert keys[0]["background"] == "white"


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_that_is_none_is_refused(tmp_path: Path, size: int) -> None:
    put(tmp_path, "a.png")
    with pytest.raises(InputError, match=f"{size} is no size: give a whole number of at least 1"):
        open_images(str(tmp_path), 8, size=size)
