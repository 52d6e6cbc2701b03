"""File kinds by their first bytes, and one line on each that cannot be a file of weights."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from mergevq.errors import InputError

BEGINNING = 4096  # bytes that are looked at

OTHER_KINDS = {  # first bytes -> what such a file is
    b"\x1f\x8b": "compressed with gzip: unpack it",
    b"BZh": "compressed with bzip2: unpack it",
    b"\xfd7zXZ": "compressed with xz: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it, and name the weights file in it",
    b"\x89HDF": "HDF5, as Keras writes it: convert it to safetensors",
    b"\x93NUMPY": "a NumPy array: give a safetensors file or a PyTorch state dict",
    b"GGUF": "GGUF: give a safetensors file or a PyTorch state dict",
}


def check_kind(path: str | Path, *, named: str) -> None:
    """Raise `InputError`, which calls the file `named`, for one that by its first bytes cannot hold weights."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{named} is a directory: name the file in it")
    try:
        with path.open("rb") as stream:
            head = stream.read(BEGINNING)
    except OSError as error:
        raise InputError(f"{named} cannot be read ({error.strerror}): correct its path or rights") from None
    if not head:
        raise InputError(f"{named} is empty: fetch it again")
    for beginning, kind in OTHER_KINDS.items():
        if head.startswith(beginning):
            raise InputError(f"{named} is {kind}")
    if head[257:262] == b"ustar":
        raise InputError(f"{named} is a tar archive: unpack it, and name the weights file in it")
    if head.startswith(b"PK"):
        _check_zip(path, named)
    elif not is_safetensors(path):
        _check_text(path, head, named)


def is_safetensors(path: str | Path) -> bool:
    """Whether a file begins as safetensors: the length of a JSON header, then the header."""
    with Path(path).open("rb") as stream:
        head = stream.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 2**32


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a TorchScript program, which holds code beside its weights."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _check_zip(path: Path, named: str) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        raise InputError(f"{named} is cut off or damaged: fetch it again") from None
    if names and all(name.endswith(".npy") for name in names):
        raise InputError(
            f"{named} is an npz of NumPy arrays; it has {some(names)}: give a safetensors file or a PyTorch state dict"
        )
    if not any(name.rpartition("/")[2] == "data.pkl" for name in names):
        raise InputError(
            f"{named} is a zip archive and no checkpoint; it has {some(names) if names else 'nothing'}: unpack it, and "
            "name the weights file in it"
        )


def _check_text(path: Path, head: bytes, named: str) -> None:
    # The last bytes may be half a letter.
    text = head[: BEGINNING - 3].removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").strip()
    if text.startswith("version https://git-lfs"):
        raise InputError(
            f"{named} is a Git LFS pointer, not the file: fetch it with 'git lfs pull', or download the file itself"
        )
    if text.startswith("<") and re.search(r"<(!doctype\s+)?html\b", text, re.IGNORECASE):
        raise InputError(f"{named} is a web page, not the file: download the file that the page leads to")
    if text.startswith(("<?xml", "<Error")):
        told = [" ".join(found.split()) for found in re.findall(r"<(?:Code|Message)>([^<]*)<", text)]
        said = f" ({': '.join(told)})" if told else ""
        raise InputError(
            f"{named} is XML, such as a store's error{said}: check the address and fetch it again"
        )
    if any(not (letter.isprintable() or letter.isspace()) or letter == "\ufffd" for letter in text):
        return
    if '"weight_map"' in text or path.name.endswith(".index.json"):
        raise InputError(
            f"{named} is the index of weights in several files: join them into one, or take a model that comes in one"
        )
    if text.startswith(("{", "[")) and (path.stat().st_size > len(head) or _is_json(text)):
        said = " ".join(text[:80].split())
        raise InputError(f"{named} is JSON, not weights ({said}): check the address and fetch it again")
    said = " ".join(text[:40].split())
    raise InputError(
        f"{named} is text, not a safetensors file or a PyTorch state dict ('{said}'): fetch it again"
    )


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def some(names: list[str]) -> str:
    """The first names of several, and how many there are."""
    return f"{', '.join(names[:3])} ({len(names)} in all)"
