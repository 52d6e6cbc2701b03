"""The address that `mergevq ui` prints answers, whatever it listens on, and no others' names do."""

from __future__ import annotations

import http.client
import socket
import urllib.parse
from pathlib import Path

import pytest

from mergevq.errors import InputError
from mergevq_platform.tracking import hosts, landing
from mergevq_platform.tracking.links import curve_link
from mergevq_platform.tracking.store import Store
from mergevq_platform.tracking.ui import UiServer

NAME = socket.gethostname()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store.at(tmp_path_factory.mktemp("store"))
    store.prepare()
    return store


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    with socket.socket(family) as probe:
        probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return probe.getsockname()[1]


def asked(
    server: UiServer, host: str, *, named: str | None = None, method: str = "GET", path: str = "/"
) -> int:
    connection = http.client.HTTPConnection(host, server.port, timeout=20)
    where = named or urllib.parse.urlsplit(server.url).netloc
    headers = {"Host": where, "Origin": f"http://{where}", "Content-Type": "application/json"}
    connection.request(method, path, body="{}" if method == "POST" else None, headers=headers)
    return connection.getresponse().status


def test_the_printed_address_answers_when_it_listens_everywhere(store: Store) -> None:
    with UiServer(store, host="0.0.0.0", port=free_port()) as server:
        printed = urllib.parse.urlsplit(server.url)
        assert printed.hostname is not None
        assert asked(server, printed.hostname) == 200
        assert asked(server, "127.0.0.1", named=f"{NAME}:{server.port}") == 200
        assert asked(server, "127.0.0.1", named=NAME) == 200
        assert asked(server, "127.0.0.1", named=f"localhost:{server.port}") == 200
        # The pages ask for runs by POST, which MLflow takes from origins that it knows alone.
        search = "/ajax-api/2.0/mlflow/experiments/search"
        assert asked(server, printed.hostname, method="POST", path=search) in (200, 400)
        assert asked(server, "127.0.0.1", named="evil.example") == 403
        assert asked(server, printed.hostname, path=f"{landing.PATH}?experiment=1") == 200
        assert asked(server, "127.0.0.1", named="evil.example", path=f"{landing.PATH}?experiment=1") == 403
        assert asked(server, "127.0.0.1", path=f"{landing.PATH}?experiment=//evil.example") == 400


@pytest.mark.slow
def test_the_printed_address_answers_under_the_name_that_was_given_beside_those_of_the_user_and_behind_a_path(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hosts.names(NAME)[0] in ("localhost", "127.0.0.1"):
        pytest.skip("this machine is called localhost")
    monkeypatch.setenv(hosts.HOSTS_VARIABLE, "proxy.example")
    monkeypatch.setenv("MLFLOW_STATIC_PREFIX", "/mlf")
    with UiServer(store, host=NAME, port=free_port()) as server:
        assert server.url == f"http://{NAME}:{server.port}/mlf"
        link = urllib.parse.urlsplit(server.link(curve_link(server.url, "1")))
        assert (link.path, link.query) == ("/mlf/mergevq", "experiment=1")
        for path in ("/mlf/", f"{link.path}?{link.query}"):
            assert asked(server, NAME, path=path) == 200
            assert asked(server, NAME, named="proxy.example", path=path) == 200
            assert asked(server, NAME, named="evil.example", path=path) == 403


@pytest.mark.slow
def test_an_ipv6_address_is_printed_in_brackets_and_answers(store: Store) -> None:
    try:
        port = free_port(socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with UiServer(store, host="::1", port=port) as server:
        assert server.url == f"http://[::1]:{port}"
        assert asked(server, "::1") == 200


@pytest.mark.slow
def test_the_printed_address_answers_when_it_listens_on_all_of_ipv6(store: Store) -> None:
    try:
        port = free_port(socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with UiServer(store, host="::", port=port) as server:
        printed = urllib.parse.urlsplit(server.url)
        assert printed.hostname is not None
        assert asked(server, printed.hostname) == 200
        assert asked(server, "::1", named=f"[::1]:{port}") == 200


def test_only_names_of_the_family_that_is_listened_on_are_printed_and_distant_ones_first() -> None:
    six, four = hosts.names("::"), hosts.names("0.0.0.0")
    for found, family in ((six, socket.AF_INET6), (four, socket.AF_INET)):
        if not found:
            continue
        socket.getaddrinfo(found[0].strip("[]"), None, family)
    assert not any(name.startswith("[") for name in four)
    assert not {"127.0.0.1", "0.0.0.0"} & set(six)
    near = [name in ("localhost", "127.0.0.1") for name in four if name != NAME]
    assert near == sorted(near)


def test_names_are_allowed_with_and_without_port_and_never_all() -> None:
    found = hosts.allowed("Box.example", 5000, {})
    listed = found[hosts.HOSTS_VARIABLE].split(",")
    assert {"Box.example", "box.example", "Box.example:5000", "box.example:5000", "localhost:*"} < set(listed)
    assert "*" not in listed
    assert found[hosts.ORIGINS_VARIABLE] == "http://Box.example:5000,http://box.example:5000"
    assert "[2001:db8::1]:5000" in hosts.allowed("2001:db8::1", 5000, {})[hosts.HOSTS_VARIABLE].split(",")
    assert NAME in hosts.allowed("0.0.0.0", 5000, {})[hosts.HOSTS_VARIABLE].split(",")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_nothing_more_is_allowed_on_loopback(host: str) -> None:
    assert hosts.allowed(host, 5000, {}) == {}


def test_names_that_the_user_allows_are_answered_beside_those_that_are_printed() -> None:
    assert hosts.HOSTS_VARIABLE not in hosts.allowed("box", 5000, {hosts.HOSTS_VARIABLE: "*"})
    for host, own in (("box", "box:5000"), ("127.0.0.1", "127.0.0.1:5000")):
        found = hosts.allowed(host, 5000, {hosts.HOSTS_VARIABLE: "proxy.example, other.example"})
        assert {own, "proxy.example", "other.example"} < set(found[hosts.HOSTS_VARIABLE].split(","))


def test_a_host_that_is_not_this_machines_is_named(tmp_path: Path, store: Store) -> None:
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(InputError, match=rf"--host {host}: .*an address of this machine"):
            UiServer(store, host=host)
