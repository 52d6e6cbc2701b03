"""Which extractor: the recipe's or the command line's, with its weights file found."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.metrics import FeaturesConfig
from mergevq_platform.recipe import EvaluationConfig


def parse_extractor(text: str, folder: Path | None = None) -> FeaturesConfig:
    """The extractor that `text` names as a recipe does: `random`, or YAML such as `{kind: timm, name: …, weights: …}`.

    A weights file named without a folder is looked for in `folder` too. Raises `InputError` for anything else.
    """
    try:
        tree: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        tree = None
    if isinstance(tree, str):
        tree = {"kind": tree}
    if not isinstance(tree, dict):
        raise InputError(
            f"--extractor '{text}': write random, or YAML such as {{kind: timm, name: …, weights: …}}"
        )
    return with_files(parse(EvaluationConfig, {"extractor": tree}, where="--"), folder).extractor


def with_files(settings: EvaluationConfig, folder: Path | None) -> EvaluationConfig:
    """The settings with the paths of weight files written out; those that are not there are looked for in `folder`, by name.

    Raises `InputError`, naming the key, for a file that is in neither place.
    """
    extractor: Any = settings.extractor
    if hasattr(extractor, "weights"):
        found = _found(extractor.weights, folder, "evaluation.extractor.weights")
        settings = replace(settings, extractor=replace(extractor, weights=found))
    if settings.lpips is not None:
        files = {
            name: _found(getattr(settings.lpips, name), folder, f"evaluation.lpips.{name}")
            for name in ("backbone", "heads")
        }
        settings = replace(settings, lpips=replace(settings.lpips, **files))
    return settings


def _found(name: str, folder: Path | None, key: str) -> str:
    name = os.path.expanduser(name)
    if Path(name).is_file():
        return name
    # The path of another machine, as a checkpoint's recipe holds it, is a name here.
    for place in (name, Path(name).name):
        if folder is not None and (folder / place).is_file():
            return str(folder / place)
    also = (
        f" nor in MERGEVQ_WEIGHTS ({folder})"
        if folder
        else "; MERGEVQ_WEIGHTS may name a folder of such files"
    )
    raise InputError(f"{key}: no file '{name}' here{also}")
