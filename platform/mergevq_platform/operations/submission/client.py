"""A cluster's Jobs API over HTTP, with the token that the cluster asks for."""

from __future__ import annotations

import json
import logging
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergevq.errors import InputError
from mergevq_platform.storage.credentials import refuse_credentials
from mergevq_platform.tracking.proxies import LOOPBACK, spare_loopback, through

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_SECONDS = 20


class Cluster:
    """A cluster that answered: its address, what it says of itself, a client of its jobs.

    `address` None takes RAY_API_SERVER_ADDRESS, then Ray's own default on this machine. A token is sent only to a
    cluster that refuses to answer without one: of RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, `home/ray_token` (which our
    own local clusters use) and ~/.ray/auth_token, the first that it takes. Raises `InputError` if nobody answers or no token fits.
    """

    def __init__(self, address: str | None = None, *, home: Path) -> None:
        self.address = _http_address(address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
        self.headers: dict[str, str] = {}
        spare_loopback()
        self.about: dict[str, Any] = self._sign_in(home)
        self._jobs: Any = None

    @property
    def is_local(self) -> bool:
        """Whether the address is this machine's own."""
        return urllib.parse.urlsplit(self.address).hostname in LOOPBACK

    @property
    def sends_token_in_clear(self) -> bool:
        """Whether the token travels over a network without encryption."""
        return bool(self.headers) and self.address.startswith("http://") and not self.is_local

    @property
    def jobs(self) -> Any:
        """Ray's `JobSubmissionClient`, made late: it imports Ray."""
        if self._jobs is None:
            from ray.job_submission import JobSubmissionClient

            for noisy in (
                "dashboard.modules.job.sdk",
                "dashboard.modules.dashboard_sdk",
                "_private.runtime_env.packaging",
            ):
                logging.getLogger(f"ray.{noisy}").setLevel(logging.WARNING)
            with _environment_address(self.address):
                self._jobs = JobSubmissionClient(self.address, headers=dict(self.headers))
        return self._jobs

    def nodes(self) -> list[dict[str, float]]:
        """The resources of every node that is alive."""
        summary = self._get("/nodes?view=summary")["data"]["summary"]
        return [
            node["raylet"].get("resourcesTotal", {})
            for node in summary
            if node.get("raylet", {}).get("state") == "ALIVE"
        ]

    def _sign_in(self, home: Path) -> dict[str, Any]:
        try:
            return self._get("/api/version")
        except urllib.error.HTTPError as error:
            if error.code not in (401, 403):
                raise InputError(
                    f"{self.address} answers with status {error.code}: is it a Ray dashboard?{through(self.address)}"
                ) from None
        except (OSError, ValueError) as error:
            raise InputError(
                f"no Ray dashboard answers at {self.address} ({error}): give --address http://HOST:8265, or open a tunnel to it"
                f"{through(self.address)}"
            ) from None
        tried = []
        for source, token in tokens(os.environ, home):
            self.headers = {"Authorization": f"Bearer {token}"}
            try:
                return self._get("/api/version")
            except urllib.error.HTTPError as error:
                if error.code not in (401, 403):
                    raise
                tried.append(source)
        raise InputError(
            f"the cluster at {self.address} asks for a token and "
            + (f"refuses that of {', '.join(tried)}" if tried else "there is none here")
            + ": set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
        )

    def _get(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(self.address + path, headers=self.headers)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)


@contextmanager
def _environment_address(address: str) -> Iterator[None]:
    # Ray takes an address in the environment before the one that it is given, and our token would go there.
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLE]
        else:
            os.environ[ADDRESS_VARIABLE] = before


def tokens(environ: Mapping[str, str], home: Path) -> Iterator[tuple[str, str]]:
    """(where from, token) of every token at hand, in the order in which they are tried."""
    if environ.get("RAY_AUTH_TOKEN"):
        yield "RAY_AUTH_TOKEN", environ["RAY_AUTH_TOKEN"]
    files = [Path(environ["RAY_AUTH_TOKEN_PATH"])] if environ.get("RAY_AUTH_TOKEN_PATH") else []
    for path in dict.fromkeys([*files, home / "ray_token", Path.home() / ".ray" / "auth_token"]):
        try:
            token = path.expanduser().read_text().strip()
        except OSError as error:
            if path in files:
                raise InputError(f"RAY_AUTH_TOKEN_PATH '{path}': {error.strerror}") from None
            continue
        if token:
            yield str(path), token


def _http_address(address: str) -> str:
    refuse_credentials(address, "the address", "give the token by RAY_AUTH_TOKEN")
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"address '{address}': jobs are submitted to the dashboard, http://HOST:8265 (--address or RAY_API_SERVER_ADDRESS)"
        )
    return address.rstrip("/")
