"""What a person sees: the link that we print, opened in a real browser over a store of ours."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from chromium import CHROMIUM, Page
from mergevq_platform.evaluation import report
from mergevq_platform.evaluation.curve import Curve
from mergevq_platform.tracking import shared_view
from mergevq_platform.tracking.listing import TrackedRun, find_run
from mergevq_platform.tracking.page_images import FOLDER, IMAGES_TAG, save_page_image
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.records import RunIdentity
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.ui import UiServer, describe
from mergevq_platform.tracking.writer import sync

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]

EXPERIMENT = "kept tokens"
KEPT = (4, 9, 16, 25, 36, 64)
GAINS = {"uniform": 1.0, "exponential": 1.3, "late": 0.8}
WIDTH, HEIGHT = 1280, 900
GENERATIVE = "Prompts"  # stands on the left of pages for language models, and on no page for model training
CHARTS = """[...document.querySelectorAll('.js-plotly-plot')].slice(0, 3).map(chart => ({
    axis: chart.layout.xaxis.title.text,
    bottom: chart.getBoundingClientRect().bottom,
    lines: chart.data.map(line => [line.name, [...line.x], [...line.y]]),
}))"""
SLIDER = "document.querySelector('[role=slider]')"
IMAGES = "[...document.querySelectorAll('img')].filter(image => image.src.includes('get-artifact'))"
# (run, key and step by the address, colour of the middle by what is drawn) of every image on the page
COLOURS = f"""{IMAGES}.map(image => {{
    const canvas = document.createElement('canvas');
    canvas.width = canvas.height = 1;
    const half = image.naturalWidth / 2, context = canvas.getContext('2d');
    context.drawImage(image, half, half, 1, 1, 0, 0, 1, 1);
    const address = new URL(image.src).searchParams;
    return [address.get('run_uuid'), address.get('path'), [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)];
}})"""


def rows(gain: float) -> dict[int, dict[str, float]]:
    return {
        kept: {
            "psnr": 15 + gain * math.log2(kept),
            "rfd_random_v1": 3 * gain / kept,
            "probe_top1_cls": 60 + 0.2 * gain * kept,
            "probe_top1_untrained": 20 + gain,
        }
        for kept in KEPT
    }


def colour(key: str, name: str, kept: int) -> list[int]:
    return [3 * kept, round(150 * GAINS[name]), 220 if key == "clusters" else 20]


def record(run_dir: Path, store: Store, name: str) -> bool:
    """A finished training with curve and images; whether the store has all of it."""
    recorder = LocalRecorder(run_dir, store, RunIdentity(name=name, experiment=EXPERIMENT))
    recorder.params({"keep.kind": name, "optimizer.lr": 1e-3 * GAINS[name]})
    for step in range(0, 200, 10):
        recorder.metrics(step, {"train/total": GAINS[name] * math.exp(-step / 80)})
    recorder.text("| kept tokens | psnr |\n|---|---|\n| 4 | 15 |\n", "curve/table.md")
    recorder.curve(rows(GAINS[name]))
    for key in ("reconstructions", "clusters"):
        for kept in KEPT:
            image = np.full((264, 264, 3), colour(key, name, kept), np.uint8)
            for file in save_page_image(run_dir / "curve", key, kept, image).values():
                recorder.artifact(file, FOLDER)
    recorder.tags({IMAGES_TAG: "True"})
    report = recorder.close("FINISHED")
    assert report is not None
    return report.complete


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, UiServer]]:
    """Three runs: two recorded in the database, one while its server was down, which `sync` delivered afterwards."""
    home = tmp_path_factory.mktemp("home")
    database = Store.at(home)
    for name in ("uniform", "exponential"):
        assert record(home / "ray" / name, database, name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = Store.at(home, f"http://127.0.0.1:{port}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
        assert not record(home / "ray" / "late", store, "late"), "its server is down"
        with UiServer(database, port=port) as server:
            assert sync(home / "ray" / "late", store).complete
            yield store, server
            family = psutil.Process(server.pid).children(recursive=True)
    assert not any(child.is_running() for child in family)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page(tmp_path / "profile", WIDTH, HEIGHT)
    try:
        yield page
    finally:
        page.close()


def shot(page: Page, name: str, tmp_path: Path) -> None:
    time.sleep(1.0)  # charts move into place
    page.screenshot(Path(os.environ.get("MERGEVQ_TEST_SCREENSHOTS", tmp_path)) / f"{name}.png")


def read(page: Page, expression: str) -> Any:
    return json.loads(page.evaluate(f"JSON.stringify({expression})"))


def test_the_link_that_we_print_shows_trade_off_images_and_comparison_of_all_runs(
    server: tuple[Store, UiServer], page: Page, tmp_path: Path
) -> None:
    store, ui = server
    assert ui.lacking is None
    (printed,) = describe(store, ui.url, ui.link)
    assert "3 runs, 3 with a curve" in printed
    (address,) = re.findall(r"http\S+", printed)
    assert address == f"{ui.url}/mergevq?experiment=1&view=mergevq"
    page.open(address)
    goals = (
        ("rfd_random_v1",),
        ("probe_top1_cls", "probe_top1_untrained"),
        ("psnr",),
    )
    lines = len(GAINS) * sum(map(len, goals))
    page.wait_for(
        f"document.querySelectorAll('.js-line').length >= {lines}", 120, "the lines of three charts"
    )
    shot(page, "charts", tmp_path)
    for chart, keys in zip(read(page, CHARTS), goals, strict=True):
        assert chart["axis"] == "curve/kept_tokens"
        assert chart["bottom"] < HEIGHT, "the whole trade-off is seen without scrolling"
        expected = {
            (name, tuple(KEPT), tuple(row[key] for row in rows(gain).values()))
            for name, gain in GAINS.items()
            for key in keys
        }
        assert {(name, tuple(x), tuple(y)) for name, x, y in chart["lines"]} == expected
    text = page.text()
    assert "3 matching runs" in text
    assert GENERATIVE not in text

    page.evaluate(f"{SLIDER}.scrollIntoView({{block: 'end'}})")
    ids = {find_run(store, name).run_id: name for name in GAINS}
    for kept in (9, 25, 64):
        if kept != 9:  # where the slider stands at first
            move_slider(page, kept)
        page.wait_for(
            f"{IMAGES}.length == 6 && {IMAGES}.every(image => image.complete && image.src.includes('step%2B{kept}%2B'))",
            60,
            f"six images of {kept} kept tokens",
        )
        found = set()
        for run_id, path, drawn in read(page, COLOURS):
            key = path.removeprefix(f"{FOLDER}/").partition("+")[0]
            found.add((key, ids[run_id]))
            assert np.allclose(drawn, colour(key, ids[run_id], kept), atol=4), (path, drawn)
        assert len(found) == 6
        shot(page, f"images_{kept}", tmp_path)

    for section in ("Runs compared, at their last point", "Parameters that differ", "train"):
        assert section in text
    page.evaluate("[...document.querySelectorAll('a')].find(link => link.innerText.trim() == 'late').click()")
    (late,) = [run_id for run_id, name in ids.items() if name == "late"]
    page.wait_for(f"location.hash.includes('/runs/{late}')", 30)
    page.wait_for("document.body.innerText.includes('Model metrics')", 60)
    shot(page, "clicked", tmp_path)
    assert GENERATIVE not in page.text()


def move_slider(page: Page, kept: int) -> None:
    """Press the slider's track where `kept` is."""
    track = f"{SLIDER}.parentElement.parentElement.getBoundingClientRect().toJSON()"
    box = read(page, track)
    share = (kept - KEPT[0]) / (KEPT[-1] - KEPT[0])
    page.click(box["x"] + min(max(share, 0.005), 0.995) * box["width"], box["y"] + box["height"] / 2)


def test_the_view_of_one_run_shows_it_alone_and_its_files_can_be_read(
    server: tuple[Store, UiServer], page: Page, tmp_path: Path
) -> None:
    store, ui = server
    link = shared_view.link(store, ui.url, EXPERIMENT, "uniform")
    assert link is not None
    assert link.reason is None
    page.open(link.address)
    page.wait_for("document.querySelectorAll('.js-line').length >= 4", 120, "the lines of three charts")
    shot(page, "run", tmp_path)
    charts = read(page, CHARTS)
    assert {line[0] for chart in charts for line in chart["lines"]} == {"uniform"}
    assert "Runs compared" not in page.text()
    run = find_run(store, "uniform")
    page.open(f"{ui.url}/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts/curve/table.md")
    page.wait_for("document.body.innerText.includes('kept tokens')", 60, "the table")


def test_through_the_landing_page_every_click_stays_in_model_training_and_a_run_answers_in_its_first_line(
    server: tuple[Store, UiServer], page: Page, tmp_path: Path
) -> None:
    store, ui = server
    answered = evaluated(store, tmp_path)
    assert ui.lacking is None, ui.lacking
    link = shared_view.link(store, ui.url, answered.experiment)
    assert link is not None
    assert link.reason is None
    through = ui.link(link.address)
    assert through == f"{ui.url}/mergevq?experiment={answered.experiment_id}&view=mergevq"
    page.open(through)
    page.wait_for("document.querySelectorAll('.js-line').length >= 3", 120, "the lines of three charts")
    assert read(page, "localStorage.getItem('mlflow.workflowType_v1')") == '"machine_learning"'
    best = "best Fréchet distance (rfd_random_v1) 0.0469 with 64 kept tokens"
    page.wait_for(f"document.body.innerText.includes({json.dumps(best)})", 60, "the best run so far")
    assert "trade-off page" in page.text()
    shot(page, "landed", tmp_path)

    named = "[...document.querySelectorAll('a')].find(link => link.innerText.trim() == 'answered')"
    page.evaluate(f"{named}.removeAttribute('target'), {named}.click()")  # a note's links open a new tab
    page.wait_for(f"location.hash.includes('/runs/{answered.run_id}')", 60)
    line = "Fréchet distance 0.0469 (rfd_random_v1) at 64, probe 72.8% at 64, PSNR 21.00 dB at 64 kept tokens"
    page.wait_for(f"document.body.innerText.includes({json.dumps(line)})", 60, "the answer")
    page.wait_for(f"{IMAGES}.length == 1 && {IMAGES}[0].naturalWidth == 520", 60, "the trade-off")
    about = "[...document.querySelectorAll('*')].findLast(at => at.innerText == 'About this run')"
    assert read(page, f"{about}.getBoundingClientRect().right") < WIDTH, "nothing is pushed out of the window"
    shot(page, "answered", tmp_path)
    for tab, sign in (("Model metrics", "curve_best"), ("Artifacts", "Select a file to preview")):
        press(page, f"[...document.querySelectorAll('[role=tab]')].find(tab => tab.innerText == '{tab}')")
        page.wait_for(f"document.body.innerText.includes('{sign}')", 60, f"the tab {tab}")
        assert "Prompts" not in page.text(), "the page is dressed for language models"
    press(page, "[...document.querySelectorAll('a')].find(link => link.innerText == 'Runs')")
    page.wait_for("document.body.innerText.includes('1 matching run')", 60, "the runs")
    assert "Prompts" not in page.text(), "the page is dressed for language models"


def press(page: Page, element: str) -> None:
    """Click the middle of an element."""
    box = read(page, f"{element}.getBoundingClientRect().toJSON()")
    page.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def evaluated(store: Store, folder: Path) -> TrackedRun:
    """A run `answered` of an experiment of its own, with the records of an evaluation."""
    found = [{"keep": float(kept), "merge_ratio": 1 - kept / 64, **row} for kept, row in rows(1.0).items()]
    protocol = {
        "suites": ["reconstruction", "representation"],
        "frechet_key": "rfd_random_v1",
        "extractor": {"name": "random_v1", "description": "random features"},
        **{"images": 64, "split": "val", "data": "data/shapes", "data_fingerprint": "0011"},
        **{"step": 20, "ema": True, "checkpoint": "somewhere"},
    }
    figure = folder / "tradeoff.png"
    Image.new("RGB", (1100, 700), "teal").save(figure)
    recorder = LocalRecorder(folder / "answered", store, RunIdentity(name="answered", experiment="answers"))
    report.record(Curve("answered", found, protocol), {"tradeoff.png": figure}, recorder, "A recipe.")
    delivered = recorder.close("FINISHED", timeout_seconds=120)
    assert delivered is not None
    assert delivered.complete
    return find_run(store, "answered")
