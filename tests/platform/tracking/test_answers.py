"""Whatever is at the address of the tracking store: every verb that asks it says in one line what it found there."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from mergevq.errors import InputError
from mergevq_platform import cli
from mergevq_platform.storage.lookup import find
from mergevq_platform.tracking.listing import list_runs
from mergevq_platform.tracking.models import fetch_model
from mergevq_platform.tracking.store import Store, StoreUnavailable

ANSWERS = {
    "another server": (404, b"<html>404 page not found</html>", "answers 404, as no MLflow server does"),
    "a page": (200, b"<html>welcome</html>", "answers, but not as an MLflow server does"),
    "nobody without a name": (401, b"", r"refuses who asks \(401\): set MLFLOW_TRACKING_USERNAME"),
    "no permission": (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "PERMISSION_DENIED: no"),
    "a broken server": (500, b"oops", "answers with error 500"),
    "a plain port of https": (400, b"sent to HTTPS port", "answers with error 400"),
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server that answers everything in one way, the test's parameter."""
    status, body, _ = ANSWERS[request.param]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(("answering", "kind"), [(kind, kind) for kind in ANSWERS], indirect=["answering"])
def test_what_answers_in_the_place_of_a_store_is_said_by_every_verb(
    answering: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MERGEVQ_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", answering)
    store = Store.at(tmp_path, answering)
    with pytest.raises(
        StoreUnavailable, match=f"^tracking store {answering}: it .*{ANSWERS[kind][2]}|{ANSWERS[kind][2]}"
    ):
        list_runs(store)
    for verb in (
        ["runs", "list"],
        ["runs", "show", "x"],
        ["runs", "rm", "x"],
        ["register", "x", "--name", "m"],
    ):
        assert cli.run(verb) == 2, verb
        said = capsys.readouterr().err
        assert answering in said
        assert len(said.splitlines()) == 1
        assert "Exception" not in said
    # Neither a run nor a model is said to be missing where nobody could tell.
    with pytest.raises(InputError, match=f"^no run 'x' in {tmp_path}.*; and tracking store {answering}: "):
        find("x", home=tmp_path, store=store)
    with pytest.raises(StoreUnavailable):
        fetch_model(store, "models:/m@champion", tmp_path / "models")


def test_a_server_without_tls_is_told_from_one_that_is_away(tmp_path: Path) -> None:
    class Plain(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Plain)
    Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(
        StoreUnavailable, match="by https: its certificate is not trusted here, or it speaks http"
    ):
        list_runs(Store.at(tmp_path, f"https://127.0.0.1:{server.server_port}"))
    server.shutdown()
    server.server_close()
    with pytest.raises(StoreUnavailable, match="cannot be reached: connection refused"):
        list_runs(Store.at(tmp_path, f"http://127.0.0.1:{server.server_port}"))


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://h:99999", "is no address: write http://host:port"),
        ("http://h:port", "is no address"),
        ("http://", "is no address"),
        (
            "http://u:word@h:5000/#/experiments/1",
            "'http://h:5000/#/experiments/1' is a page of MLflow's: .*http://h:5000/$",
        ),
        ("ftp://u:word@h/x", "'ftp://h/x'"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_before_it_is_asked(
    tmp_path: Path, uri: str, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        Store.at(tmp_path, uri)
    assert "word" not in str(caught.value)


def test_blanks_and_capitals_of_an_address_change_nothing(tmp_path: Path) -> None:
    store = Store.at(tmp_path, " HTTP://127.0.0.1:5000/ ")
    assert store.uri == "http://127.0.0.1:5000"
    assert store.is_server


def test_a_store_that_is_a_directory_or_lacks_its_driver_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a directory: name the database file in it"):
        list_runs(Store.at(tmp_path, f"sqlite:///{tmp_path}"))
    with pytest.raises(InputError, match=r"'psycopg2?', which is not installed"):
        list_runs(Store.at(tmp_path, "postgresql://u:word@127.0.0.1:9/db"))
