"""Credentials in URIs: recognised, so that nothing writes them down.

A password in `scheme://user:password@host` or a secret in a URI's query is used where it is given and recorded nowhere:
not in MLflow, not in a run's files, not in a job's metadata, not on the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mergevq.errors import InputError

_PASSWORD = re.compile(
    r"(?<=://)[^\s/?#'\"]*:[^\s/?#'\"]*@|(?<=https://)[^\s/?#'\"]+@"  # alone before a web host it is a token
)
_SECRET = (
    r"secret|password|passwd|token|signature|credential|access_?key|api_?key|sig(?==)|pwd(?==)|sslpassword"
)
_QUERY = re.compile(rf"(?<=[?&])[^\s&=?'\"]*(?:{_SECRET})[^\s&=?'\"]*=[^\s&#'\"]+&?", re.IGNORECASE)
_LEFT_OVER = re.compile(r"[?&](?=[\s'\"]|$)")


def without_credentials(text: str) -> str:
    """`text` with user and password and secret query values taken out of every URI in it."""
    if not holds_credentials(text):
        return text
    return _LEFT_OVER.sub("", _QUERY.sub("", _PASSWORD.sub("", text)))


def holds_credentials(text: str) -> bool:
    """Whether a URI in `text` carries a password or a secret query value. A database user's name alone is none."""
    return "://" in text and bool(_PASSWORD.search(text) or _QUERY.search(text))


def refuse_credentials(text: str, what: str, instead: str) -> None:
    """Raise `InputError` if `text` carries credentials; the message names `what` and repeats no secret."""
    if holds_credentials(text):
        raise InputError(f"{what} '{without_credentials(text)}' was given with credentials: {instead}")


def keys_with_credentials(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(key path, cleaned value) of every text in a plain tree that carries credentials."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from keys_with_credentials(value, f"{path}.")
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and holds_credentials(text):
                yield path, without_credentials(text)
