"""Checkpoints of the Hugging Face Hub as places: pinned to a commit, and fetched into the cache of the machine that reads.

A pushed checkpoint is a whole one without resume.pt; a repository with config.json and model.safetensors alone is a model alone.
"""

from __future__ import annotations

from pathlib import Path

from mergevq.hub import Kind, fetch, on_hub, parse_address, pin
from mergevq.serialization import CONFIG, WEIGHTS

ABOUT = "checkpoint.json"
RECIPE = "recipe.yaml"
REPORTS = ("curve.json", "report.json")


def checkpoint_folder(place: str) -> Path:
    """The folder in this machine's cache with a model of the Hub, and with the recipe and record that it may have.

    Raises `InputError` where the Hub does not give it.
    """
    return fetch(parse_address(place, kind="model"), (CONFIG, WEIGHTS), (ABOUT, RECIPE))


def evaluations(place: str) -> list[Path]:
    """The files of an evaluation that were pushed with a model of the Hub, in this machine's cache.

    Raises `InputError` where the Hub does not give it.
    """
    folder = fetch(parse_address(place, kind="model"), (CONFIG,), REPORTS)
    return [folder / name for name in REPORTS if (folder / name).is_file()]


def pinned(place: str, kind: Kind) -> str:
    """A place at the commit that its revision means now; one that is not on the Hub as it is.

    Raises `InputError` for an address of another kind, and where the Hub does not say.
    """
    return str(pin(parse_address(place, kind=kind))) if on_hub(place) else place
