"""What a person sees of `mergevq reconstruct --html`: one file in a real browser, from disk."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mergevq
from chromium import CHROMIUM, Page
from mergevq.metrics import Psnr, to_uint8
from mergevq_platform import cli
from mergevq_platform.data import evaluation_view

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]

KEEPS = (4, 7, 9, 16)
NAMES = ("first.png", '<img src=x onerror="document.title=1">&.png')
SHOWN = '[...document.querySelectorAll("figure:nth-child(2) img:not([hidden])")].map(image => image.src)'
CLUSTERS = '[...document.querySelectorAll(".overlay:not([hidden])")].map(image => image.src)'
CAPTIONS = '[...document.querySelectorAll("figcaption span:not([hidden])")].map(span => span.textContent)'
# The file has a script of its own: neither another one nor anything from elsewhere gets past its policy.
FORBIDDEN = """(async () => {
  const script = document.createElement("script");
  script.textContent = "window.came = true";
  document.body.append(script);
  const fetched = await fetch("data:text/plain,x").then(() => true, () => false);
  return JSON.stringify([window.came === true, fetched]);
})()"""


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Page]:
    browser = Page(tmp_path / "profile")
    try:
        yield browser
    finally:
        browser.close()


def pixels(address: str) -> np.ndarray:
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def test_the_slider_shows_every_image_at_the_count_that_it_names(
    tokenizer_directory: Path, browser: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screenshots = Path(os.environ.get("MERGEVQ_TEST_SCREENSHOTS", tmp_path))
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "home"))
    random = np.random.default_rng(0)
    files = [tmp_path / name for name in NAMES]
    for file in files:
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(file)
    html = tmp_path / "page.html"
    counts = [str(keep) for keep in reversed(KEEPS)]
    words = [*map(str, files), "--keep", *counts, "--html", str(html)]
    assert cli.run(["reconstruct", str(tokenizer_directory), *words]) == 0
    assert not Path("reconstructions").exists()

    tokenizer = mergevq.load(tokenizer_directory)
    views = np.stack([evaluation_view(Image.open(file), 16) for file in files])
    originals = torch.from_numpy(views).permute(0, 3, 1, 2).float() / 127.5 - 1
    browser.open(html.as_uri())
    browser.wait_for(f"document.querySelectorAll('article').length === {len(files)}", 30)
    assert browser.evaluate("document.title") == "tokenizer0: reconstructions over kept tokens"
    assert browser.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)") == list(NAMES)

    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.id") == "keep", "the slider is reached by the keyboard"
    browser.press("Home", 36)
    for at, keep in enumerate(KEEPS):
        if at:
            browser.press("ArrowRight", 39)
        assert browser.evaluate("slider.value") == str(at)
        assert browser.evaluate("document.querySelector('output').innerText").startswith(f"{keep} of 16, ")
        assert browser.evaluate("slider.getAttribute('aria-valuetext')").startswith(f"{keep} of 16, ")
        with torch.inference_mode():
            code = tokenizer.encode(originals, keep)
            decoded = tokenizer.decode(code)
        expected = to_uint8(decoded).permute(0, 2, 3, 1).numpy()
        shown = np.stack([pixels(address)[..., :3] for address in browser.evaluate(SHOWN)])
        np.testing.assert_array_equal(shown, expected)
        scores = Psnr().scores(to_uint8(originals).double(), to_uint8(decoded).double())
        assert browser.evaluate(CAPTIONS) == [f"{keep} kept: {score:.2f} dB" for score in scores]
        for overlay, assignment in zip(browser.evaluate(CLUSTERS), code.source.assignment, strict=True):
            middle = pixels(overlay)[8::16, 8::16].reshape(16, 4)  # of each cell
            alone = torch.bincount(assignment)[assignment] == 1
            np.testing.assert_array_equal(middle[:, 3] == 0, alone.numpy())
            for cell in range(16):
                together = (assignment == assignment[cell]).numpy() & ~alone.numpy()
                assert len(np.unique(middle[together], axis=0)) <= 1
        assert browser.evaluate("document.querySelectorAll('td.now').length") == len(files)
    browser.screenshot(screenshots / "page.png")

    browser.evaluate("slider.value = 1; slider.dispatchEvent(new Event('input'))")
    assert browser.evaluate("document.querySelector('output').innerText").startswith("7 of 16, ")
    browser.resize(400, 800, dark=True)
    browser.screenshot(screenshots / "page_phone.png")
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"


def test_the_page_lets_no_other_script_and_nothing_from_elsewhere_in(
    tokenizer_directory: Path, browser: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path / "home"))
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "image.png")
    html = tmp_path / "page.html"
    words = [str(tokenizer_directory), str(tmp_path / "image.png"), "--keep", "9", "--html", str(html)]
    assert cli.run(["reconstruct", *words]) == 0
    assert "http" not in html.read_text().replace("http-equiv", "")
    browser.open(html.as_uri())
    browser.wait_for("document.querySelectorAll('article').length === 1", 30)
    assert browser.evaluate("slider.offsetParent === null"), "one count needs no slider"
    browser.evaluate(f"{FORBIDDEN}.then(found => {{ document.body.dataset.found = found }}); 1")
    assert browser.wait_for("document.body.dataset.found", 10) == "[false,false]"
