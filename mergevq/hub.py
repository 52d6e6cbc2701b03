"""The Hugging Face Hub: addresses of repositories there, and files of models fetched into this machine's cache.

An address is `hf://owner/name[@revision][/folder]` for a model and `hf://datasets/owner/name[@revision][/folder]` for a data
set; a revision is a branch, a tag, a commit or `refs/pr/N`. `huggingface_hub` brings the files, and reads its own settings
(`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from mergevq.errors import InputError

SCHEME = "hf://"
WRITTEN = {
    "model": "hf://owner/name[@revision][/folder]",
    "dataset": "hf://datasets/owner/name[@revision][/folder]",
}
_PREFIXES = {"model": "", "dataset": "datasets/"}
_FOREIGN = ("spaces", "kernels", "buckets")
_SPECIAL_REVISION = r"refs/(?:pr/\d+|convert/[\w.-]+)"
_NAME = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_ADDRESS = re.compile(
    rf"(?P<repository>{_NAME}/{_NAME})(?:@(?P<revision>{_SPECIAL_REVISION}|[^/@?#\s]+))?(?:/(?P<folder>[^?#]*))?",
    re.ASCII,
)
_MISSPELT = re.compile(
    r"\s*(?:hf:|(?:https?:)?/{0,2}(?:[^/@\s]*@)?(?:www\.)?(?:huggingface\.co|hf\.co)/)", re.IGNORECASE
)
_SECRETS = re.compile(r"(?<=//)[^/@\s]*:[^/@\s]*(?=@)|hf_[A-Za-z0-9]{16,}")
_COMMIT = re.compile(r"[0-9a-f]{40}")

Kind = Literal["model", "dataset"]


@dataclass(frozen=True, kw_only=True)
class HubAddress:
    """A repository of the Hub, or a folder in it, at a revision (None: its main branch)."""

    repository: str  # owner/name
    kind: Kind = "model"
    revision: str | None = None
    folder: str = ""

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a whole commit hash, which never means other files."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    @property
    def whole(self) -> HubAddress:
        """The repository itself, without revision and folder."""
        return replace(self, revision=None, folder="")

    def inside(self, folder: str) -> HubAddress:
        """A folder of this one."""
        return replace(self, folder="/".join(part for part in (self.folder, folder) if part))

    def __str__(self) -> str:
        """The address as it is written."""
        text = f"{SCHEME}{_PREFIXES[self.kind]}{self.repository}"
        if self.revision is not None:
            special = re.fullmatch(_SPECIAL_REVISION, self.revision)
            text += f"@{self.revision if special else quote(self.revision, safe='')}"
        return f"{text}/{self.folder}" if self.folder else text


def check_spelling(place: object) -> None:
    """Raise `InputError` for a place that means the Hub and is not written as its addresses are, such as a page's URL."""
    if isinstance(place, str) and not place.startswith(SCHEME) and _MISSPELT.match(place):
        raise InputError(f"'{_shown(place)}' is no address of the Hub: write {SCHEME}owner/name")


def on_hub(place: object) -> bool:
    """Whether a place is written as an address of the Hub."""
    return isinstance(place, str) and place.startswith(SCHEME)


def parse_address(text: str, *, kind: Kind) -> HubAddress:
    """The address in `text`. Raises `InputError` for one that is no repository's, and for one of another kind than `kind`."""
    rest = text.removeprefix(SCHEME)
    first, _, below = rest.partition("/")
    if first in _FOREIGN:
        raise InputError(f"'{_shown(text)}' names one of the Hub's {first}: write {WRITTEN[kind]}")
    found: Kind = "dataset" if first == "datasets" else "model"
    match = _ADDRESS.fullmatch(below if first in ("datasets", "models") else rest)
    folder = (match["folder"] or "").rstrip("/") if match else ""
    if match is None or (folder and not all(part.strip(".") for part in folder.split("/"))):
        raise InputError(f"'{_shown(text)}' is no address of the Hub: write {WRITTEN[kind]}")
    if found != kind:
        have, want = ("a data set", "a model") if kind == "model" else ("a model", "a data set")
        raise InputError(f"'{_shown(text)}' names {have}, and this takes {want}: write {WRITTEN[kind]}")
    revision = unquote(match["revision"]) if match["revision"] else None
    return HubAddress(repository=match["repository"], kind=kind, revision=revision, folder=folder)


def short_name(place: str) -> str:
    """What tables call a place: the last part of its path; of a repository on the Hub `owner/name`, and the folder."""
    if not on_hub(place):
        return Path(place.rstrip("/")).name
    kind: Kind = "dataset" if place.startswith(f"{SCHEME}datasets/") else "model"
    address = parse_address(place, kind=kind)
    return "/".join(part for part in (address.repository, address.folder) if part)


def pin(address: HubAddress) -> HubAddress:
    """The address at the commit that its revision means now; where the Hub cannot be reached, what it meant last here.

    Raises `InputError` as `explained` does.
    """
    if address.is_pinned:
        return address
    from huggingface_hub import HfApi

    with explained(address):
        resolved = HfApi().resolve_revision(
            address.repository, repo_type=address.kind, revision=address.revision
        )
    return replace(address, revision=resolved.resolved)


def fetch(address: HubAddress, files: Sequence[str], optional: Sequence[str] = ()) -> Path:
    """The folder in this machine's cache with `files` of a model, and with those of `optional` that it has.

    What is there already is not asked for again. Raises `InputError` for a file that the model lacks, and as `explained` does.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    pinned, folder = pin(address), None
    for name in (*files, *optional):
        if name in optional and _is_known_absent(pinned, name):
            continue
        try:
            with explained(address):
                path = hf_hub_download(
                    pinned.repository, name, subfolder=pinned.folder or None, revision=pinned.revision
                )
        except RemoteEntryNotFoundError:
            if name in optional:
                continue
            raise InputError(
                f"{address} is no model of mergevq: it has no {name}; `mergevq push` writes one"
            ) from None
        folder = folder or Path(path).parent
    assert folder is not None
    return folder


def _is_known_absent(pinned: HubAddress, name: str) -> bool:
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    path = f"{pinned.folder}/{name}" if pinned.folder else name
    return try_to_load_from_cache(pinned.repository, path, revision=pinned.revision) is _CACHED_NO_EXIST


def endpoint() -> str:
    """The Hub in use, without credentials that its URL may carry."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def explained(address: HubAddress, *, pushing: bool = False) -> Iterator[None]:
    """Errors of `huggingface_hub` become an `InputError` of one line: what, which address, what to do. No token is in it.

    A file that the repository lacks stays a `RemoteEntryNotFoundError`, for the caller to say; an error of the disk stays
    as it is.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.RemoteEntryNotFoundError:
        raise
    except (
        errors.HTTPError,
        errors.EntryNotFoundError,
        errors.RevisionResolutionError,
        errors.OfflineModeIsEnabled,
        errors.HFValidationError,
    ) as error:
        raise InputError(_explanation(error, address, pushing)) from None


def _explanation(error: BaseException, address: HubAddress, pushing: bool) -> str:
    from huggingface_hub import errors

    lacking = f"{address} cannot be pushed" if pushing else f"{address} is not whole in this machine's cache"
    for told in _chain(error):
        match told:
            case errors.GatedRepoError():
                page = f"{endpoint()}/{_PREFIXES[address.kind]}{address.repository}"
                return f"{address} is gated: ask for access at {page}, then {_LOG_IN}"
            case errors.RepositoryNotFoundError():
                return f"{address}: there is no such repository on {endpoint()}, or it is private: correct the name, or {_LOG_IN}"
            case errors.RevisionNotFoundError():
                return f"{address}: {address.whole} has no revision '{address.revision}': name a branch, a tag or a whole commit"
            case errors.DisabledRepoError():
                return f"{address} was disabled by the Hub: name another"
            case errors.HFValidationError():
                return f"'{address}' is no address of the Hub: write {WRITTEN[address.kind]}"
            case errors.OfflineModeIsEnabled():
                return f"{lacking}, and HF_HUB_OFFLINE is set: unset it{'' if pushing else ', or fetch it before'}"
            case errors.HfHubHTTPError():
                return _refusal(told, address)
    reason = " ".join(str(error.__cause__ or error).split())[:200]
    return f"{lacking}, and {endpoint()} cannot be reached ({reason}): check the connection and HF_ENDPOINT"


_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


def _refusal(error: BaseException, address: HubAddress) -> str:
    """A status of the Hub that has no class of its own."""
    status = error.response.status_code  # type: ignore[attr-defined]
    if status in (401, 403):
        return f"{address}: {endpoint()} refuses the token in use (status {status}): {_LOG_IN}, with rights to this repository"
    message = without_token(" ".join((getattr(error, "server_message", None) or "").split())[:200])
    said = f" ({message})" if message else ""
    passing = status in (408, 409, 429) or status >= 500
    fix = "try again later" if passing else "correct what it names"
    return f"{address}: {endpoint()} answers with status {status}{said}: {fix}"


def without_token(text: str) -> str:
    """`text` without the token in use."""
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "…") if token else text


def _shown(text: str) -> str:
    """A place as messages show it: on one line, without passwords and tokens."""
    return _SECRETS.sub("…", without_token(" ".join(text.split())))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
