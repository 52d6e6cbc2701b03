"""Proxies of the environment: never for this machine itself, and named where a request through one fails."""

from __future__ import annotations

import os
import urllib.parse
import urllib.request
from collections.abc import MutableMapping

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NEVER = (*LOOPBACK, "[::1]")


def spare_loopback(environ: MutableMapping[str, str] | None = None) -> None:
    """Use no proxy for this machine's own addresses, by any library and any process that is started from here."""
    environ = os.environ if environ is None else environ
    if not any(
        environ.get(name)
        for name in environ
        if name.lower().endswith("_proxy") and name.lower() != "no_proxy"
    ):
        return
    lower, upper = environ.get("no_proxy"), environ.get("NO_PROXY")
    # Where the two differ each stays what it was: programs read one or the other.
    for name, given in (("no_proxy", lower or upper or ""), ("NO_PROXY", upper or lower or "")):
        listed = [host.strip() for host in given.split(",") if host.strip()]
        if "*" not in listed:
            given = ",".join([*listed, *(host for host in _NEVER if host not in listed)])
        environ[name] = given


def through(url: str) -> str:
    """An addition to a message about a `url` that does not answer: the variable of the proxy that the request went through, if one did."""
    parts = urllib.parse.urlsplit(url)
    proxies = urllib.request.getproxies_environment()
    host = parts.hostname or ""
    scheme = parts.scheme if parts.scheme in proxies else "all"
    if scheme not in proxies or urllib.request.proxy_bypass_environment(host, proxies):  # type: ignore[attr-defined]
        return ""
    name = f"{scheme}_proxy"
    variable = name if os.environ.get(name) else name.upper()
    return f"; it was asked through the proxy of {variable}: add {host} to no_proxy if it is reached without"
