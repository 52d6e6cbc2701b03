"""Names of runs, sweeps and recipes. They become folders, URIs and ids of jobs."""

from __future__ import annotations

import re
import unicodedata

from mergevq.errors import InputError

LONGEST = 128
ADDED = 28  # letters at most that we add to a name: a time and four letters, the number of a trial
RULE = "take letters of a to z in either case, digits, '_', '-' and '.', a letter or digit first"
_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def fits(name: str) -> bool:
    """Whether file systems, object stores and clusters all take every letter of a name, whatever its length."""
    return _ALLOWED.fullmatch(name) is not None


def check_name(name: str, what: str, *, longest: int = LONGEST) -> str:
    """The name, if it is allowed. Raises `InputError` that calls it `what` and says the rule."""
    if not fits(name):
        shown = name if len(name) <= 40 else f"{name[:40]}…"
        raise InputError(f"{what} {shown!r} will not do: {RULE}, such as '{fitted(name)}'")
    if len(name) > longest:
        raise InputError(f"{what} '{name[:40]}…' has {len(name)} letters: take {longest} at most")
    return name


def fitted(text: str) -> str:
    """A name made of any text: accents are dropped, what does not fit becomes '_', what is too long is cut."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", plain).lstrip("_.-")[: LONGEST - ADDED].rstrip("_.")
    return name or "unnamed"


def derived(name: str, ending: str) -> str:
    """`name-ending`, the name cut where both together would be too long."""
    return f"{name[: LONGEST - ADDED]}-{ending}"
