"""Recipe files: those of users, and those that come with the distribution."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import yaml

from mergevq.config import Tree
from mergevq.errors import InputError
from mergevq.text_files import read_text
from mergevq_platform.storage import naming


def read(name_or_path: str | Path) -> Tree:
    """The unresolved tree of a recipe file or packaged recipe. Raises `InputError` if there is none or it is not YAML."""
    path = find(name_or_path)
    try:
        tree = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise InputError(f"{path} is not YAML{line}: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no recipe: it must be a mapping of keys to values")
    tree.setdefault("name", naming.fitted(path.stem))
    return tree


def find(name_or_path: str | Path) -> Path:
    """The file of a recipe given by path or by name. Raises `InputError` that lists the packaged names."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    packaged = packaged_recipes()
    if str(name_or_path) in packaged:
        return packaged[str(name_or_path)]
    raise InputError(f"no recipe '{name_or_path}': give a YAML file or one of {', '.join(sorted(packaged))}")


def packaged_recipes() -> dict[str, Path]:
    """Recipes that come with the distribution, by name: from the wheel, or from jobs/recipes of a checkout."""
    installed = Path(str(resources.files("mergevq_platform"))) / "recipes"
    checkout = Path(__file__).resolve().parents[3] / "jobs" / "recipes"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
