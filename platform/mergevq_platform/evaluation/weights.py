"""Which extractor: the recipe's or the command line's, with its weights file found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from mergevq.config import parse
from mergevq.errors import InputError
from mergevq.metrics import FeaturesConfig
from mergevq_platform.recipe import EvaluationConfig


def parse_extractor(text: str) -> FeaturesConfig:
    """The extractor that `text` names as a recipe does: `random`, or YAML such as `{kind: timm, name: …, weights: …}`.

    Raises `InputError` for anything else.
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
    return parse(EvaluationConfig, {"extractor": tree}, where="--").extractor


def with_file(extractor: FeaturesConfig, folder: Path | None) -> FeaturesConfig:
    """The extractor with the path of its weights file written out: a bare name is looked for in `folder`."""
    settings: Any = extractor  # a kind without weights has no such field
    name = getattr(settings, "weights", None)
    if not name or Path(name).is_file():
        return extractor
    if folder is not None and (folder / name).is_file():
        return replace(settings, weights=str((folder / name).absolute()))
    where = (
        f" nor in MERGEVQ_WEIGHTS ({folder})"
        if folder
        else "; MERGEVQ_WEIGHTS may name a folder of such files"
    )
    raise InputError(f"evaluation.extractor.weights: no file '{name}' here{where}")
