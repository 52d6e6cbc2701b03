"""The page of `reconstruct --html`: below 5 MB whatever it is given, and it says what that took."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mergevq
from mergevq.errors import InputError
from mergevq.tokenizer import MergeVQ
from mergevq_platform import cli
from mergevq_platform.evaluation import reconstruction
from mergevq_platform.evaluation import reconstruction_page as pages
from mergevq_platform.evaluation.reconstruction import distinct
from mergevq_platform.figures import cluster_overlay

SIDE = 128


@pytest.fixture(scope="module")
def tokenizer() -> MergeVQ:
    """An untrained one, of images large enough to be drawn smaller."""
    torch.manual_seed(0)
    wide = {"encoder": {"patch": 16}, "decoder": {"multipliers": [1, 1, 1, 1]}}
    return mergevq.create("test_r", wide, image_size=SIDE, keep=16).eval()


def made(tokenizer: MergeVQ, count: int) -> tuple[pages.ReconstructionPage, pages.PageFormat]:
    random = np.random.default_rng(1)
    views = [random.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(count)]
    names = [f"{index}.png" for index in range(count)]
    return pages.reconstruction_page(tokenizer, views, names, [16, 64], title="t", facts=["f"])


def test_images_are_held_as_faithfully_as_the_limit_allows_and_else_refused(
    tokenizer: MergeVQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = pages.BATCH + 1
    for expected in [*(pages.PageFormat(quality) for quality in (None, 95, 85, 75)), pages.PageFormat(75, 2)]:
        page, form = made(tokenizer, count)
        html = page.html()
        assert form == expected
        assert len(html.encode()) == page.size_bytes <= pages.LIMIT_BYTES
        assert html.count("<article>") == count
        assert form.sentence((SIDE, SIDE)) in html
        assert ("64 × 64 of 128 × 128 px" in html) == (expected.divisor == 2)
        monkeypatch.setattr(pages, "LIMIT_BYTES", page.size_bytes - 1)
    wording = r"9 images at 2 kept counts do not fit .* quality 75 at 64 x 64 px: give about (\d) images, or fewer --keep"
    with pytest.raises(InputError, match=wording) as refusal:
        made(tokenizer, count)
    (most,) = re.findall(wording, str(refusal.value))
    assert made(tokenizer, int(most))[1] == pages.PageFormat(75, 2)


def test_a_number_of_images_beyond_all_hope_is_refused_before_one_is_opened(
    tokenizer_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "home"))
    files = [str(tmp_path / f"{index}.png") for index in range(9000)]
    words = [*files, "--keep", "9", "--html", str(tmp_path / "page.html")]
    assert cli.run(["reconstruct", str(tokenizer_directory), *words]) == 2
    said = capsys.readouterr().err
    assert "9000 images at 1 kept counts" in said
    assert f"at most {pages.most_images(1)}" in said


def test_a_page_and_figures_are_written_together_and_never_over_others(
    tokenizer_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (20, 16), "teal").save(tmp_path / folder / "same.png")
    words = ["reconstruct", str(tokenizer_directory), "a/same.png", "b/same.png", "--keep", "9", "16"]
    assert cli.run([*words, "--html", "new/page.html", "--out", "figures"]) == 0
    written = capsys.readouterr().out.split()
    assert [Path(file).name for file in written] == ["page.html", "reconstructions.png", "clusters.png"]
    text = Path("new/page.html").read_text()
    assert "<h2>same.png</h2>" in text
    assert "<h2>same.png (2)</h2>" in text
    assert "9 of 16, 44% merged: 54 bits of codes" in text
    assert cli.run([*words, "--html", "new/page.html"]) == 2
    assert "--html new/page.html is there already" in capsys.readouterr().err
    assert Path("new/page.html").read_text() == text


def test_images_that_are_no_squares_keep_their_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "home"))
    mergevq.save(mergevq.create("test_gr", image_size=[16, 24]), tmp_path / "wide")
    Image.new("RGB", (48, 32), "teal").save(tmp_path / "image.png")
    html = tmp_path / "page.html"
    words = [str(tmp_path / "wide"), str(tmp_path / "image.png"), "--keep", "9", "--html", str(html)]
    assert cli.run(["reconstruct", *words]) == 0
    assert "16 × 24 px, 24 grid tokens" in html.read_text()
    assert html.read_text().count('height="16" width="24"') == 3


def test_a_name_that_is_no_utf8_is_written_as_bytes(
    tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "home"))
    photo = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.new("RGB", (20, 16), "teal").save(photo)
    html = tmp_path / "page.html"
    assert (
        cli.run(["reconstruct", str(tokenizer_directory), str(photo), "--keep", "9", "--html", str(html)])
        == 0
    )
    assert "<h2>caf\\xe9.png</h2>" in html.read_text()


def test_a_size_beyond_the_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 45000000000 bytes."
        )

    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(reconstruction, "reconstruct", full)
    assert cli.run(["reconstruct", "run", "a.png", "--size", "90000x100000"]) == 2
    assert "--size 90000x100000: the memory here does not hold" in capsys.readouterr().err


def test_names_of_a_page_are_distinct() -> None:
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]


def test_an_overlay_is_clear_where_nothing_was_merged_and_has_lines_between_clusters() -> None:
    cells = torch.tensor([[0, 0, 1, 2], [0, 0, 3, 3]]).flatten()  # a square of four, two alone, a pair
    drawn, colours = cluster_overlay(cells, (16, 32), side=8)
    assert drawn.shape == (16, 32)
    opacity = colours[drawn][..., 3]
    inside = opacity[3::8, 3::8]
    np.testing.assert_array_equal(inside == 0, [[False, False, True, True], [False] * 4])
    assert (inside[inside > 0] == 128).all()
    middles = drawn[3::8, 3::8]
    assert len({middles[0, 0], middles[0, 1], middles[1, 0], middles[1, 1]}) == 1
    assert middles[1, 2] == middles[1, 3] != middles[0, 0]
    assert (colours[drawn[:, 15]] == 255).all(), "a white line between columns of different clusters"
    assert not (colours[drawn[:, 7]] == 255).all(1).any(), "and none inside a cluster"
    with pytest.raises(InputError, match="do not tile"):
        cluster_overlay(cells, (16, 16))
