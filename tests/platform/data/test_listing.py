"""Which files are found below a folder, and which of them are images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mergevq_platform.data.images.decoding import decode
from mergevq_platform.data.images.endings import IMAGE_ENDINGS, begins_as_image, is_image, named_as_image
from mergevq_platform.data.sources.listing import listed


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_files_are_listed_sorted_and_hidden_ones_apart(tmp_path: Path) -> None:
    put(tmp_path, "b/2.png", "a.png", "b/1.png", ".DS_Store", ".git/x.png", "b/._1.png")
    assert listed(tmp_path) == (["a.png", "b/1.png", "b/2.png"], [".DS_Store", ".git", "b/._1.png"], [])


@pytest.mark.parametrize(
    "folder", ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found"]
)
def test_what_systems_keep_beside_images_is_hidden(tmp_path: Path, folder: str) -> None:
    put(tmp_path, "cat/1.png", f"cat/{folder}/1.png/thumb.jpg", f"{folder}/2.png")
    assert listed(tmp_path) == (["cat/1.png"], sorted([folder, f"cat/{folder}"]), [])


def test_folders_without_files_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/.keep")
    (tmp_path / "emu/young").mkdir(parents=True)
    assert listed(tmp_path).empty == ["dog", "emu/young"]
    assert listed(tmp_path / "emu/young") == ([], [], [])


def test_what_is_no_file_is_never_read(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    assert listed(tmp_path) == (["a.png", "gone.png"], ["null.png", "pipe.png"], [])


def test_every_link_to_a_folder_is_followed(tmp_path: Path) -> None:
    put(tmp_path, "set/train/a/1.png", "set/train/b/2.png", "elsewhere/c/3.png")
    (tmp_path / "set/val").symlink_to("train", target_is_directory=True)
    (tmp_path / "set/train/c").symlink_to("../../elsewhere/c", target_is_directory=True)
    names = ["a/1.png", "b/2.png", "c/3.png"]
    assert listed(tmp_path / "set").files == [
        f"{split}/{name}" for split in ("train", "val") for name in names
    ]


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a/up").symlink_to("..", target_is_directory=True)
    (tmp_path / "b/self").symlink_to(".", target_is_directory=True)
    (tmp_path / "b/x.png").symlink_to("x.png")
    assert listed(tmp_path).files == ["a/1.png", "b/2.png", "b/x.png"]


@pytest.mark.parametrize(
    "name", ["a.JPEG", "a.jfif", "a.avif", "a.Png", "a.tif", "a.jp2", "a.webp", "a.bmp", "a.pgm"]
)
def test_what_pillow_opens_is_an_image(name: str) -> None:
    assert named_as_image(name)


@pytest.mark.parametrize("name", ["a.pdf", "a.eps", "a.mpg", "a.h5", "a.heic", "a.txt", "a.tar", "a", ".png"])
def test_what_pillow_does_not_open_is_none(name: str) -> None:
    assert not named_as_image(name)
    assert all(ending.startswith(".") and ending == ending.lower() for ending in IMAGE_ENDINGS)


def test_a_file_without_an_ending_is_looked_at(tmp_path: Path) -> None:
    from PIL import Image

    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        Image.new("RGB", (20, 20)).save(tmp_path / kind, kind)
        assert begins_as_image((tmp_path / kind).read_bytes()[:16]), kind
        assert is_image(tmp_path / kind)
        assert decode((tmp_path / kind).read_bytes()).size == (20, 20)
    put(tmp_path, "README")
    assert not is_image(tmp_path / "README")
    assert not is_image(tmp_path / "nowhere")
