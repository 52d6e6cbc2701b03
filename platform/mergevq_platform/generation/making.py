"""Making pictures with a trained generator: on any number of workers, resumable, the same codes whatever the number.

Sample i has class `classes[i mod len]`, and its random numbers are a function of (seed, i). Batch b is always samples
[bB, (b+1)B), and workers take whole batches. A batch's codes are written after its pictures: a batch that has them is made.
"""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from mergevq.errors import InputError
from mergevq.metrics import to_uint8
from mergevq_platform import figures
from mergevq_platform.data.image_folder import SHEET
from mergevq_platform.data.images.decoding import encode_png
from mergevq_platform.distributed.ordered_map import answers
from mergevq_platform.distributed.progress import counted
from mergevq_platform.generation.maker import Maker, Sampler
from mergevq_platform.storage.files import whole_file, write_whole

MANIFEST = "generation.json"
SHEET_CLASSES, SHEET_EACH = 12, 8


@dataclass(frozen=True)
class Order:
    """What is to be made where, in a form that travels to workers."""

    sampler: Sampler
    directory: str
    classes: tuple[int, ...]
    names: tuple[str, ...]  # of all classes
    num: int
    batch: int

    def samples(self, batch: int) -> list[tuple[int, int]]:
        """(sample, class) of a batch."""
        first = batch * self.batch
        return [
            (sample, self.classes[sample % len(self.classes)])
            for sample in range(first, min(first + self.batch, self.num))
        ]

    def picture(self, sample: int, label: int) -> Path:
        """The file of a picture."""
        return Path(self.directory, "pictures", f"{sample:06d}-{safe(self.names[label])}.png")

    def codes(self, batch: int) -> Path:
        """The file of a batch's codes."""
        return Path(self.directory, "codes", f"{batch:05d}.npz")

    def made(self, batch: int) -> bool:
        """Whether an earlier run has made a batch."""
        return self.codes(batch).is_file() and all(
            self.picture(*item).is_file() for item in self.samples(batch)
        )


class Made(NamedTuple):
    """What became of a batch."""

    pictures: int
    tokens: int
    seconds: float


class Worker:
    """One process with generator and tokenizer; makes batches."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.maker = Maker(order.sampler)

    def answer(self, batch: int) -> Made:
        """Make one batch and write its pictures, then its codes."""
        began = time.monotonic()
        samples = self.order.samples(batch)
        ids, labels = torch.tensor(samples, dtype=torch.int64).unbind(1)
        made = self.maker.codes(labels, ids)
        pictures = to_uint8(self.maker.pictures(made.indices)).permute(0, 2, 3, 1).cpu().numpy()
        seconds = time.monotonic() - began
        for item, picture in zip(samples, pictures, strict=True):
            with whole_file(self.order.picture(*item)) as temporary:
                temporary.write_bytes(encode_png(picture))
        stream = io.BytesIO()
        np.savez(stream, indices=made.indices.cpu().numpy(), label=labels.numpy(), sample=ids.numpy())
        with whole_file(self.order.codes(batch)) as temporary:
            temporary.write_bytes(stream.getvalue())
        return Made(len(samples), made.indices.numel(), seconds)


def make(order: Order, *, workers: int = 0, progress: bool = True) -> dict[str, Any]:
    """Make what is missing of an order, with a contact sheet and a manifest; returns the manifest.

    Raises `InputError` for a number below 1, and for a directory that holds pictures of another order.
    """
    if order.num < 1 or order.batch < 1:
        raise InputError(f"--num is {order.num} and --batch {order.batch}: both must be at least 1")
    directory = Path(order.directory)
    wanted = described(order)
    existing = directory / MANIFEST
    if existing.is_file():
        found = {key: value for key, value in json.loads(existing.read_text()).items() if key in wanted}
        if found != json.loads(json.dumps(wanted)):
            differ = sorted(key for key in wanted if found.get(key) != json.loads(json.dumps(wanted[key])))
            raise InputError(
                f"{directory} already holds pictures that were made otherwise ({', '.join(differ)} differ): name another --out"
            )
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(existing, json.dumps(wanted, indent=1) + "\n")
    batches = range(-(-order.num // order.batch))
    missing = [batch for batch in batches if not order.made(batch)]
    done = sum(len(order.samples(batch)) for batch in batches) - sum(len(order.samples(b)) for b in missing)
    began, tokens = time.monotonic(), 0
    with counted("generating", "pictures", order.num, shown=progress) as advance:
        advance(done)
        if missing:
            for made in answers(Worker, order, workers=workers, device=order.sampler.device)(missing):
                advance(made.pictures)
                tokens += made.tokens
    seconds = time.monotonic() - began
    figures.save_png(sheet(order), directory / SHEET)
    manifest = {**wanted, "complete": True}
    if missing:
        manifest["last_run"] = {
            "pictures": order.num - done,
            "workers": max(1, workers),
            "seconds": round(seconds, 2),
            "pictures_per_second": round((order.num - done) / seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
        }
    write_whole(existing, json.dumps(manifest, indent=1) + "\n")
    return manifest


def described(order: Order) -> dict[str, Any]:
    """What decides the pictures: the protocol of an order."""
    return {
        **order.sampler.protocol(),
        "recipe": order.sampler.recipe["name"],
        "classes": {str(label): order.names[label] for label in order.classes},
        "num": order.num,
        "batch": order.batch,
    }


def sheet(order: Order) -> Any:
    """The first pictures of the first classes, a row for each."""
    rows: dict[str, list[np.ndarray]] = {}
    for place, label in enumerate(order.classes[:SHEET_CLASSES]):
        samples = range(place, order.num, len(order.classes))[:SHEET_EACH]
        if samples:
            rows[order.names[label]] = [np.asarray(Image.open(order.picture(s, label))) for s in samples]
    return figures.image_rows(rows)


def safe(name: str) -> str:
    """A class name as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:60]
