"""Small image files, folders of them, and archives in memory."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def image(seed: int, kind: str = "PNG", size: tuple[int, int] = (12, 9)) -> bytes:
    """An encoded image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def images(*folders: str, each: int = 2, ending: str = "png") -> dict[str, bytes]:
    """Named images, some in every folder; "" for none."""
    kind = {"png": "PNG", "jpg": "JPEG"}[ending]
    return {
        f"{folder}/{index}.{ending}".lstrip("/"): image(100 * number + index, kind)
        for number, folder in enumerate(folders)
        for index in range(each)
    }


def tree(root: Path, files: dict[str, bytes]) -> Path:
    """Files below a folder."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar; `mode` "w", "w:gz", "w:bz2", "w:xz"."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip, deflated."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def table(path: Path, rows: Iterable[str], encoding: str = "utf-8") -> Path:
    """A text file of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{row}\n" for row in rows).encode(encoding))
    return path


def counts(dataset: Any) -> dict[str | None, int]:
    """Images of each class of a dataset; None: without a label."""
    found: dict[str | None, int] = {}
    for row in dataset.read(range(dataset.rows)):
        name = dataset.classes[row.label] if row.label >= 0 else None
        found[name] = found.get(name, 0) + 1
    return found
