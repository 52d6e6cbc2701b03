"""The Ray clusters that commands of a home have started on this machine, found by their processes: these hold the home's token."""

from __future__ import annotations

from pathlib import Path

import psutil

from mergevq.errors import InputError

TOKEN_FILE = "ray_token"
_ADDRESS = "--gcs-address="


def token_of(home: Path) -> Path:
    """The file with the token of the clusters that commands of this home start."""
    return home.absolute() / TOKEN_FILE


def running(home: Path) -> list[str]:
    """The addresses (host:port) of the clusters of this home that run on this machine."""
    token, found = str(token_of(home)), set()
    for process in psutil.process_iter(["name"]):
        if process.info["name"] != "raylet":
            continue
        try:
            if process.environ().get("RAY_AUTH_TOKEN_PATH") == token:
                words = process.cmdline()
                found |= {word.removeprefix(_ADDRESS) for word in words if word.startswith(_ADDRESS)}
        except psutil.Error:  # it has ended, or belongs to someone else
            continue
    return sorted(found)


def the_one(home: Path) -> str | None:
    """The address of the cluster of this home that runs on this machine; None without any. Raises `InputError` if there are several."""
    found = running(home)
    if len(found) > 1:
        raise InputError(f"several clusters of {home} run here: name one by --address {' or '.join(found)}")
    return found[0] if found else None
