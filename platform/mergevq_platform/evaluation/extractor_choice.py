"""The choice of an extractor: the recipe's or the command line's, with its weights file found."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import yaml

from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.metrics import FeaturesConfig, InceptionFeaturesConfig, RandomFeaturesConfig, extractor
from mergevq_platform.recipe import EvaluationConfig


def parse_extractor(text: str, folder: Path | None = None) -> FeaturesConfig:
    """The extractor that `text` names as a recipe does: `random`, or YAML such as `{kind: timm, name: …, weights: …}`.

    A weights file named without a folder is looked for in `folder` too. Raises `InputError` for anything else.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError:
        tree = None
    if isinstance(tree, str):
        tree = {"kind": tree}
    if not isinstance(tree, dict):
        raise InputError(
            f"--extractor '{text}': write random, or YAML such as {{kind: timm, name: …, weights: …}}"
        )
    return with_files(parse(EvaluationConfig, {"extractor": tree}, where="--"), folder).extractor


def inception_extractor(file: str, folder: Path | None = None) -> FeaturesConfig:
    """The Inception with the weights in `file`, of `--inception`; it is opened, so that a file of anything else is said first.

    Raises `InputError`, naming the option.
    """
    settings = InceptionFeaturesConfig(weights=found_file(file, folder, "--inception"))
    try:
        extractor(settings, key="--inception")
    except InputError as error:
        raise InputError(str(error).replace("--inception.weights", "--inception")) from None
    return settings


def with_files(settings: EvaluationConfig, folder: Path | None) -> EvaluationConfig:
    """The settings with the paths of weight files written out; those that are not there are looked for in `folder`, by name.

    Raises `InputError`, naming the key, for a file that is in neither place.
    """
    chosen = settings.extractor
    if not isinstance(chosen, RandomFeaturesConfig):
        found = found_file(chosen.weights, folder, "evaluation.extractor.weights")
        settings = replace(settings, extractor=replace(chosen, weights=found))
    if settings.lpips is not None:
        files = {
            name: found_file(getattr(settings.lpips, name), folder, f"evaluation.lpips.{name}")
            for name in ("backbone", "heads")
        }
        settings = replace(settings, lpips=replace(settings.lpips, **files))
    return settings


def found_file(name: str, folder: Path | None, key: str) -> str:
    """The path of a file of weights, here or in `folder`. Raises `InputError`, naming the key, where it is in neither."""
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
