"""Sampling images of a trained generator into a folder: on any number of workers, resumable, the same codes whatever the number.

Sample i has class `classes[i mod len]`, and its random numbers are a function of (seed, i). Batch b is always samples
[bB, (b+1)B), and workers take whole batches. A batch's codes are written after its images: a batch that has them is done.
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
from mergevq.files import whole_file, write_whole
from mergevq.metrics import to_uint8
from mergevq.ragged import NO_TOKEN
from mergevq_platform import figures
from mergevq_platform.data.image_folder import SHEET
from mergevq_platform.data.images.decoding import encode_png
from mergevq_platform.distributed.ordered_map import answers
from mergevq_platform.distributed.sharded_map import resumed_map
from mergevq_platform.sampling.pipeline import SamplingPipeline, SamplingSpec

MANIFEST = "generation.json"
SHEET_CLASSES, SHEET_EACH = 12, 8


class BatchResult(NamedTuple):
    """The images and tokens that this run sampled of a batch: none, where an earlier run has finished it."""

    images: int
    tokens: int


@dataclass(frozen=True)
class SamplingJob:
    """A sampling job and its folder; travels to workers."""

    spec: SamplingSpec
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

    def image(self, sample: int, label: int) -> Path:
        """The file of an image."""
        return Path(self.directory, "pictures", f"{sample:06d}-{safe(self.names[label])}.png")

    def codes(self, batch: int) -> Path:
        """The file of a batch's codes."""
        return Path(self.directory, "codes", f"{batch:05d}.npz")

    def finished(self, batch: int) -> BatchResult | None:
        """The empty result of a batch that an earlier run has sampled."""
        files = [self.codes(batch), *(self.image(*item) for item in self.samples(batch))]
        return BatchResult(0, 0) if all(file.is_file() for file in files) else None


class SamplingWorker:
    """One process with generator and tokenizer; samples batches."""

    def __init__(self, job: SamplingJob) -> None:
        self.job = job
        self.pipeline = SamplingPipeline(job.spec)

    def answer(self, batch: int) -> BatchResult:
        """Sample one batch and write its images, then its codes."""
        samples = self.job.samples(batch)
        ids, labels = torch.tensor(samples, dtype=torch.int64).unbind(1)
        generated = self.pipeline.codes(labels, ids)
        images = to_uint8(self.pipeline.decode(generated.indices)).permute(0, 2, 3, 1).cpu().numpy()
        for item, image in zip(samples, images, strict=True):
            with whole_file(self.job.image(*item)) as temporary:
                temporary.write_bytes(encode_png(image))
        stream = io.BytesIO()
        indices = generated.indices.cpu().numpy()
        arrays = {"indices": indices, "label": labels.numpy(), "sample": ids.numpy()}
        counts = self.pipeline.counts(labels, ids)
        if isinstance(counts, torch.Tensor):
            arrays["keep"] = counts.numpy()
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # its stub takes every keyword for `allow_pickle`
        with whole_file(self.job.codes(batch)) as temporary:
            temporary.write_bytes(stream.getvalue())
        return BatchResult(len(samples), int((indices != NO_TOKEN).sum()))


def sample_images(job: SamplingJob, *, workers: int = 0, progress: bool = True) -> dict[str, Any]:
    """Sample what is missing of a job, with a contact sheet and a manifest; returns the manifest.

    Raises `InputError` for a number below 1, and for a directory that holds images of another job.
    """
    if job.num < 1 or job.batch < 1:
        raise InputError(f"--num is {job.num} and --batch {job.batch}: both must be at least 1")
    directory = Path(job.directory)
    wanted = described(job)
    existing = directory / MANIFEST
    if existing.is_file():
        found = {key: value for key, value in json.loads(existing.read_text()).items() if key in wanted}
        if found != json.loads(json.dumps(wanted)):
            differ = sorted(key for key in wanted if found.get(key) != json.loads(json.dumps(wanted[key])))
            raise InputError(
                f"{directory} already holds images that were made otherwise ({', '.join(differ)} differ): name another --out"
            )
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(existing, json.dumps(wanted, indent=1) + "\n")
    batches = range(-(-job.num // job.batch))
    began = time.monotonic()
    results = resumed_map(
        batches,
        lambda missing: answers(SamplingWorker, job, workers=workers, device=job.spec.device)(missing),
        finished=job.finished,
        size=lambda batch: len(job.samples(batch)),
        title="generating",
        unit="images",
        progress=progress,
    )
    seconds = time.monotonic() - began
    images, tokens = (sum(counts) for counts in zip(*results, strict=True))
    figures.save_png(sheet(job), directory / SHEET)
    manifest = {**wanted, "complete": True}
    if images:
        manifest["last_run"] = {
            "pictures": images,
            "workers": max(1, workers),
            "seconds": round(seconds, 2),
            "pictures_per_second": round(images / seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
        }
    write_whole(existing, json.dumps(manifest, indent=1) + "\n")
    return manifest


def described(job: SamplingJob) -> dict[str, Any]:
    """The protocol of a job: everything that decides the images."""
    return {
        **job.spec.protocol(),
        "recipe": job.spec.recipe.name,
        "classes": {str(label): job.names[label] for label in job.classes},
        "num": job.num,
        "batch": job.batch,
    }


def sheet(job: SamplingJob) -> Any:
    """The first images of the first classes, a row for each."""
    rows: dict[str, list[np.ndarray]] = {}
    for place, label in enumerate(job.classes[:SHEET_CLASSES]):
        samples = range(place, job.num, len(job.classes))[:SHEET_EACH]
        if samples:
            rows[job.names[label]] = [np.asarray(Image.open(job.image(s, label))) for s in samples]
    return figures.image_rows(rows)


def safe(name: str) -> str:
    """A class name as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:60]
