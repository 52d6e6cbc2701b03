"""A page of Debian's headless Chromium, driven through its debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

CHROMIUM = shutil.which("chromium")
T = TypeVar("T")


class Navigated(Exception):
    """The page went elsewhere while it answered: what it was asked is to be asked again, if that does no harm."""


class Page:
    """One page, `width` x `height` CSS pixels at 100 %; close it in the end."""

    def __init__(self, profile: Path, width: int = 1280, height: int = 900) -> None:
        self._process = subprocess.Popen(
            [
                str(CHROMIUM),
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--disable-dev-shm-usage", "--disable-extensions", f"--window-size={width},{height}"),
                # A mouse, as on a desk: without one, the tools of a chart stand before its lines.
                "--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4",
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
        self._loop = asyncio.new_event_loop()
        self._numbers = iter(range(1, 1_000_000))
        try:
            self._run(self._connect(_debugging_port(profile / "DevToolsActivePort")))
            self.resize(width, height)
        except BaseException:
            self.close()
            raise

    def open(self, address: str) -> None:
        """Go to an address, even one that differs from the present one after '#' alone."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self) -> str:
        """What the page says."""
        return self.evaluate("document.body ? document.body.innerText : ''") or ""

    def wait_for(self, expression: str, seconds: float, what: str = "") -> Any:
        """The first true value of a JavaScript expression, which may fail at first. Fails with the page's text after `seconds`."""
        expression = f"(() => {{ try {{ return {expression} }} catch {{ return false }} }})()"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(Navigated):
                if value := self.evaluate(expression):
                    return value
            time.sleep(0.3)
        raise AssertionError(
            f"after {seconds:.0f} s the page has not {what or expression}, but:\n{self.text()}"
        )

    def click(self, x: float, y: float) -> None:
        """Press and release the left button at a point of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int) -> None:
        """Press and release a key, by its name and its Windows code: ("ArrowRight", 39)."""
        for kind in ("rawKeyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Make the window so many CSS pixels wide and high, in light or dark colours."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)

    def screenshot(self, file: Path) -> None:
        """Save what the window shows."""
        shot = self._call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End the browser and everything it started."""
        with contextlib.suppress(Exception):
            self._run(self._session.close())
        self._loop.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _run(self, step: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(step)

    async def _connect(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            target = next(entry for entry in json.load(answer) if entry["type"] == "page")
        self._session = aiohttp.ClientSession()
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        async def call() -> dict[str, Any]:
            number = next(self._numbers)
            await self._socket.send_json({"id": number, "method": method, "params": params})
            while True:
                message = await self._socket.receive_json(timeout=60)
                if message.get("id") == number:
                    if message.get("error", {}).get("message") == "Inspected target navigated or closed":
                        raise Navigated(method)
                    assert "error" not in message, message
                    return message["result"]

        return self._run(call())


def _debugging_port(file: Path) -> int:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if file.exists() and len(lines := file.read_text().splitlines()) > 1:
            return int(lines[0])
        time.sleep(0.1)
    raise TimeoutError("Chromium did not open its debugging port")
