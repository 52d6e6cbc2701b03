"""Ray's client of a cluster's jobs, with the token that the cluster asks for."""

from __future__ import annotations

import logging
import os
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from mergevq.errors import InputError
from mergevq_platform.storage.credentials import refuse_credentials
from mergevq_platform.tracking.proxies import LOOPBACK, spare_loopback, through

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
CONNECT_SECONDS = 20
ANSWER_SECONDS = 60  # of a question; an upload may take what it takes
QUIET = ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging")


class ClusterClient(JobSubmissionClient):
    """Ray's client, signed in at `address`; None takes RAY_API_SERVER_ADDRESS, then Ray's own default on this machine.

    Beside Ray's: an address in the environment does not replace the one that is given; no question waits for ever; a token
    is sent only to a cluster that refuses to answer without one: of RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH,
    `home/ray_token` (which our own local clusters use) and ~/.ray/auth_token, the first that it takes. Raises `InputError` if
    there is no answer or no token fits.
    """

    def __init__(self, address: str | None = None, *, home: Path) -> None:
        self.address = _http_address(address or os.environ.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS)
        self.token_headers: dict[str, str] = {}
        for name in QUIET:
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        spare_loopback()
        try:
            self._sign_in(home)
            self.about: dict[str, Any] = self._do_request("GET", "/api/version").json()
        except requests.HTTPError as error:
            status = "an error" if error.response is None else f"status {error.response.status_code}"
            raise InputError(
                f"{self.address} answers with {status}: is it a Ray dashboard?{through(self.address)}"
            ) from None
        except (OSError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(
                f"no Ray dashboard answers at {self.address} ({_reason(error)}): give --address http://HOST:8265, or open a "
                f"tunnel to it{through(self.address)}"
            ) from None

    @property
    def is_local(self) -> bool:
        """Whether the address is this machine's own."""
        return urllib.parse.urlsplit(self.address).hostname in LOOPBACK

    @property
    def sends_token_in_clear(self) -> bool:
        """Whether the token travels over a network without encryption."""
        return bool(self.token_headers) and self.address.startswith("http://") and not self.is_local

    def nodes(self) -> list[dict[str, float]]:
        """The resources of every node that is alive."""
        answer = self._do_request("GET", "/nodes?view=summary")
        raylets = [node.get("raylet", {}) for node in answer.json()["data"]["summary"]]
        return [raylet.get("resourcesTotal", {}) for raylet in raylets if raylet.get("state") == "ALIVE"]

    def _sign_in(self, home: Path) -> None:
        with _environment_address(self.address):
            try:
                return super().__init__(self.address)
            except AuthenticationError:
                refused = []
            for source, token in tokens(os.environ, home):
                self.token_headers = {"Authorization": f"Bearer {token}"}
                try:
                    return super().__init__(self.address)
                except AuthenticationError:
                    refused.append(source)
        raise InputError(
            f"the cluster at {self.address} asks for a token and "
            + (f"refuses that of {', '.join(refused)}" if refused else "there is none here")
            + ": set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with the cluster's token"
        )

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        self._headers = dict(self.token_headers)  # Ray would add a token by rules of its own
        timeout = (CONNECT_SECONDS, ANSWER_SECONDS if method == "GET" else None)
        return super()._do_request(method, endpoint, timeout=timeout, **options)


@contextmanager
def _environment_address(address: str) -> Iterator[None]:
    # Ray takes an address in the environment before the one that it is given, and our token would go there.
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        os.environ.pop(ADDRESS_VARIABLE)
        if before is not None:
            os.environ[ADDRESS_VARIABLE] = before


def _reason(error: BaseException) -> str:
    while (inner := error.__cause__ or error.__context__) is not None:  # below Ray, requests and urllib3
        error = inner
    return " ".join(str(error).split())[:200] or type(error).__name__


def tokens(environ: Mapping[str, str], home: Path) -> Iterator[tuple[str, str]]:
    """(where from, token) of every token at hand, in the order in which they are tried."""
    if environ.get("RAY_AUTH_TOKEN"):
        yield "RAY_AUTH_TOKEN", environ["RAY_AUTH_TOKEN"]
    given = Path(environ["RAY_AUTH_TOKEN_PATH"]) if environ.get("RAY_AUTH_TOKEN_PATH") else None
    for path in dict.fromkeys(
        [*filter(None, [given]), home / "ray_token", Path.home() / ".ray" / "auth_token"]
    ):
        try:
            token = path.expanduser().read_text().strip()
        except OSError as error:
            if path == given:
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
