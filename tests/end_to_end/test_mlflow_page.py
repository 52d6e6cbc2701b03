"""What a person sees: MLflow's chart page over a store of ours, in a real browser."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from mergevq_platform.tracking.links import curve_link
from mergevq_platform.tracking.listing import find_run, list_runs
from mergevq_platform.tracking.recorder import LocalRecorder
from mergevq_platform.tracking.records import RunIdentity
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.ui import UiServer

CHROMIUM = shutil.which("chromium")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (apt-get install chromium)"),
]

KEPT = (4, 9, 16, 25, 36, 64)
QUERY = "workflowType=machine_learning"
METRICS = ("psnr", "rfd_random_v1", "probe_top1_summary")


class Page:
    """One page of a headless Chromium, driven through its debugging protocol."""

    def __init__(self, profile: Path) -> None:
        self._process = subprocess.Popen(
            [
                str(CHROMIUM),
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--disable-dev-shm-usage", "--disable-extensions", "--window-size=1600,1300"),
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            env={**os.environ, "TMPDIR": str(profile.parent)},  # it leaves folders there when it is killed
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._port = self._debugging_port(profile / "DevToolsActivePort")

    def visit(
        self, address: str, *, until: list[str], seconds: float, screenshot: Path, lines: int = 0
    ) -> str:
        """Open `address`, wait until its text holds all of `until` and `lines` are drawn, save a screenshot, return the text."""
        return asyncio.run(self._visit(address, until, seconds, screenshot, lines))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _debugging_port(self, file: Path) -> int:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            if file.exists() and len(lines := file.read_text().splitlines()) > 1:
                return int(lines[0])
            time.sleep(0.1)
        self.close()
        raise TimeoutError("Chromium did not open its debugging port")

    async def _visit(
        self, address: str, until: list[str], seconds: float, screenshot: Path, lines: int
    ) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/json/list") as answer:
            target = next(entry for entry in json.load(answer) if entry["type"] == "page")
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket,
        ):
            numbers = iter(range(1, 1_000_000))

            async def call(method: str, **params: Any) -> dict[str, Any]:
                number = next(numbers)
                await socket.send_json({"id": number, "method": method, "params": params})
                while True:
                    message = await socket.receive_json(timeout=60)
                    if message.get("id") == number:
                        assert "error" not in message, message
                        return message["result"]

            async def evaluate(expression: str) -> Any:
                result = await call("Runtime.evaluate", expression=expression, returnByValue=True)
                return result["result"].get("value")

            await call("Page.navigate", url="about:blank")  # else only the part after '#' would change
            await call("Page.navigate", url=address)
            deadline = time.monotonic() + seconds
            text, drawn = "", 0
            while time.monotonic() < deadline:
                text = await evaluate("document.body ? document.body.innerText : ''") or ""
                drawn = await evaluate("document.querySelectorAll('.js-line').length") or 0
                if all(part in text for part in until) and drawn >= lines:
                    break
                await asyncio.sleep(0.5)
            else:
                missing = [part for part in until if part not in text]
                raise AssertionError(
                    f"{address} does not show {missing}, {drawn} lines of {lines}, but:\n{text}"
                )
            await asyncio.sleep(2.0)  # charts move into place
            shot = await call("Page.captureScreenshot", format="png")
            screenshot.write_bytes(base64.b64decode(shot["data"]))
            return text


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    page = Page(tmp_path / "profile")
    try:
        yield page
    finally:
        page.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two finished trainings of one experiment, each with its curve."""
    store = Store.at(tmp_path / "home")
    for name, gain in (("uniform", 1.0), ("exponential", 1.3)):
        recorder = LocalRecorder(
            tmp_path / "runs" / name, store, RunIdentity(name=name, experiment="kept tokens")
        )
        recorder.params({"keep.kind": name, "optimizer.lr": 1e-3})
        for step in range(0, 200, 10):
            recorder.metrics(step, {"train/total": gain * math.exp(-step / 80)})
        recorder.text("| kept tokens | psnr |\n|---|---|\n| 4 | 15 |\n", "curve/table.md")
        recorder.curve(
            {
                kept: {
                    "psnr": 15 + gain * math.log2(kept),
                    "rfd_random_v1": 3 * gain / kept,
                    "probe_top1_summary": 0.6 + 0.002 * gain * kept,
                }
                for kept in KEPT
            }
        )
        report = recorder.close("FINISHED")
        assert report is not None
        assert report.complete
    return store


def test_the_link_we_print_opens_on_charts_of_the_curves_of_both_runs(
    store: Store, page: Page, tmp_path: Path
) -> None:
    screenshots = Path(os.environ.get("MERGEVQ_TEST_SCREENSHOTS", tmp_path))
    experiment = list_runs(store)[0].experiment_id
    with UiServer(store, port=None) as server:
        family = psutil.Process(server.pid).children(recursive=True)
        text = page.visit(
            curve_link(server.url, experiment),
            until=["curve", *METRICS, "uniform", "exponential"],
            seconds=120,
            screenshot=screenshots / "charts.png",
            lines=2 * len(METRICS),
        )
        assert "2 matching runs" in text
        uniform = find_run(store, "uniform")
        text = page.visit(
            curve_link(server.url, experiment, uniform.run_id),
            until=["curve", *METRICS],
            seconds=60,
            screenshot=screenshots / "run.png",
            lines=len(METRICS),
        )
        page.visit(
            f"{server.url}/#/experiments/{experiment}/runs/{uniform.run_id}/artifacts/curve/table.md?{QUERY}",
            until=["curve/table.md", "psnr"],
            seconds=60,
            screenshot=screenshots / "artifact.png",
        )
        assert "Prompts" not in text, "the page is dressed for language models"
    assert not any(child.is_running() for child in family)
