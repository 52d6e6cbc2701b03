"""Data sets of the Hugging Face Hub: fetched whole into this machine's cache, once, and read there as any folder is.

pyarrow could read them over the network (`hf://` through fsspec). Training reads a set many times and in random pieces, archives and
image files are read as local files, and a resumed run must find the same bytes while the Hub is away: so the snapshot of a
commit is fetched first, and the cache serves every reader and every later run.
"""

from __future__ import annotations

import glob
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from mergevq.errors import InputError
from mergevq.hub import HubAddress, check_spelling, explained, on_hub, parse_address, pin
from mergevq_platform.distributed.progress import counted, duration, readable_size

POLL_SECONDS = 1.0


def local_folder(place: str | Path) -> str | Path:
    """Where the files of an image set are on this machine: of a data set of the Hub its folder in the cache, fetched if need be.

    Any other place stays as it is. Raises `InputError` where the Hub does not give it, and for a disk that is too small.
    """
    check_spelling(place)
    if not on_hub(place):
        return place
    return fetch_dataset(pin(parse_address(str(place), kind="dataset")))


def is_at_hand(place: str | Path) -> bool:
    """Whether reading an image set fetches nothing: it is not on the Hub, or whole in this machine's cache."""
    if not on_hub(place):
        return True
    try:
        return _cached(pin(parse_address(str(place), kind="dataset"))) is not None
    except InputError:
        return False


@lru_cache(maxsize=16)
def fetch_dataset(address: HubAddress) -> Path:
    """The folder of a data set's commit in this machine's cache; what is missing there is fetched, its size said before.

    Raises as `local_folder` does.
    """
    from huggingface_hub import snapshot_download

    if (folder := _cached(address)) is not None:
        return folder
    files, snapshot = _listed(address), _snapshot(address)
    missing = {name: size for name, size in files.items() if not (snapshot / name).exists()}
    total = sum(missing.values())
    cache = snapshot.parents[2]
    _require_space(address, total, cache)
    _say(
        f"{address}: fetching {len(missing):,} of {len(files):,} files, {readable_size(total)}, into {cache}"
    )
    began = time.monotonic()
    with explained(address), _progress(snapshot, missing):
        snapshot_download(
            address.repository,
            repo_type="dataset",
            revision=address.revision,
            allow_patterns=[f"{glob.escape(address.folder)}/*"] if address.folder else None,
        )
    _say(f"{address}: fetched in {duration(time.monotonic() - began)}")
    return snapshot / address.folder


def _cached(address: HubAddress) -> Path | None:
    """The folder of a commit that is whole in the cache; None where files are missing, or their list is not known here."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(address.repository, repo_type="dataset", revision=address.revision)
    except CachedRepoTreeNotFoundError:
        return None
    snapshot, below = _snapshot(address), f"{address.folder}/" if address.folder else ""
    wanted = [file.path for file in tree if file.path.startswith(below)]
    whole = bool(wanted) and all((snapshot / name).exists() for name in wanted)
    return snapshot / address.folder if whole else None


def _listed(address: HubAddress) -> dict[str, int]:
    """The files of a data set's commit, below the folder of the address, with their bytes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from huggingface_hub.hf_api import RepoFile

    try:
        with explained(address):
            entries = list(
                HfApi().list_repo_tree(
                    address.repository,
                    address.folder or None,
                    recursive=True,
                    revision=address.revision,
                    repo_type="dataset",
                )
            )
    except RemoteEntryNotFoundError:
        raise InputError(
            f"{address}: {address.whole} has no folder '{address.folder}' at this commit: correct it, or leave it out"
        ) from None
    found = {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}
    if not found:
        raise InputError(f"{address} holds no files: name another data set, or another folder of it")
    return found


def _snapshot(address: HubAddress) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=address.repository, repo_type="dataset")
    return Path(constants.HF_HUB_CACHE).expanduser() / folder / "snapshots" / str(address.revision)


def _require_space(address: HubAddress, wanted: int, cache: Path) -> None:
    free = shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free
    if wanted > free:
        raise InputError(
            f"{address}: {readable_size(wanted)} are to be fetched, and {cache} has {readable_size(free)} free: set HF_HOME to a "
            f"larger disk, or name a folder of the set ({address.whole}/FOLDER)"
        )


@contextmanager
def _progress(snapshot: Path, missing: Mapping[str, int]) -> Iterator[None]:
    """On a terminal `huggingface_hub` shows its own bars; elsewhere a line tells every few seconds what has arrived."""
    if sys.stderr.isatty():
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        left = dict(missing)
        with counted("fetching", "MB", round(sum(left.values()) / 1e6)) as advance:
            while not ended.wait(POLL_SECONDS):
                arrived = [name for name in left if (snapshot / name).exists()]
                advance(round(sum(left.pop(name) for name in arrived) / 1e6))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
