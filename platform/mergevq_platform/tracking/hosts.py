"""The names under which MLflow's server is reached, and those that it must be configured to answer to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping, Sequence

import psutil

HOSTS_VARIABLE = "MLFLOW_SERVER_ALLOWED_HOSTS"
ORIGINS_VARIABLE = "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"
_FAMILIES = {"0.0.0.0": (socket.AF_INET,), "::": (socket.AF_INET6,)}  # a server at `::` takes no IPv4
# What MLflow answers to by default: this machine, and private networks.
_LOOPBACK = ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"]
_PRIVATE = ["192.168.*", "10.*", *(f"172.{second}.*" for second in range(16, 32)), "fc00:*", "fd00:*"]


def is_any(host: str) -> bool:
    """Whether a server at `host` listens on all addresses of this machine."""
    return host in ("", "0.0.0.0", "::", "[::]")


def names(host: str) -> list[str]:
    """The names under which a server at `host` is reached, the one to print first; IPv6 addresses in brackets."""
    if not is_any(host):
        return [_in_url(host)]
    families = _FAMILIES.get(host.strip("[]"), (socket.AF_INET, socket.AF_INET6))
    own = [socket.gethostname(), socket.getfqdn()]
    addresses = [
        address.address.partition("%")[0]
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family in families
    ]
    found = dict.fromkeys(_in_url(name) for name in (*own, *addresses))
    # Of equal ones the order stays.
    return sorted(
        found, key=lambda name: (not _resolves(name.strip("[]"), families), _near(name.strip("[]")))
    )


def allowed(host: str, port: int, given: Mapping[str, str]) -> dict[str, str]:
    """MLflow's variables that let a server at `host` and `port` answer to its own names, and to those that the user has `given`.

    Nothing for a server on loopback alone, which MLflow answers for by itself, unless names are given: they take the place of
    its own. Never every name; a user who gave `*` keeps it.
    """
    if not is_any(host) and names(host)[0] in _LOOPBACK and not given.get(HOSTS_VARIABLE):
        return {}
    own = dict.fromkeys(
        form for name in names(host) for form in (name, name.lower())
    )  # browsers write them small
    anywhere = [f"{name.replace('[', '[[]')}:*" for name in _LOOPBACK]
    hosts = [*_LOOPBACK, *anywhere, *_PRIVATE, *(form for name in own for form in (name, f"{name}:{port}"))]
    origins = [f"http://{name}:{port}" for name in own]
    added = {}
    for variable, ours in ((HOSTS_VARIABLE, hosts), (ORIGINS_VARIABLE, origins)):
        theirs = [name.strip() for name in given.get(variable, "").split(",") if name.strip()]
        if "*" not in theirs:
            added[variable] = ",".join(dict.fromkeys((*theirs, *ours)))
    return added


def family(host: str) -> socket.AddressFamily:
    """The family of `host`'s address. Raises `OSError` for a name that does not resolve."""
    return socket.getaddrinfo(host.strip("[]") or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ][0]


def _in_url(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def _near(name: str) -> bool:
    """Whether the address reaches no machine, or none beyond one link."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return address.is_loopback or address.is_link_local


def _resolves(name: str, families: Sequence[socket.AddressFamily]) -> bool:
    try:
        return any(found[0] in families for found in socket.getaddrinfo(name, None))
    except OSError:
        return False
