"""The committed fixtures: an image set, a stand-in teacher, a run, a code set, a generator and a recipe, as one tree wrote them.

They are made once, by `python tests/golden/record.py --fixtures`, and never again: that later trees open them is what they are for.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import product
import trees
import yaml

HERE = Path(__file__).parent / "fixtures"
NAMES = ("images", "teacher", "run", "codes", "generator", "recipe.yaml")


def make() -> None:
    """Write all of them below the working directory, which must be empty, and put them into the repository."""
    product.write_images("images", "scratch")
    product.train(trees.teacher(), "teaching")
    Path("teacher").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(product.newest("teaching"), name), "teacher")
    Path("recipe.yaml").write_text(yaml.safe_dump(trees.smallest_tokenizer(), sort_keys=False))

    _begin(trees.smallest_tokenizer(), "run")
    product.write_codes(trees.TOKENIZER, "codes", "images", trees.KEEPS, crops=2)
    _begin(trees.committed_generator(product.hashes(trees.TOKENIZER)), "generator")
    HERE.mkdir()
    for name in NAMES:
        if Path(name).is_dir():
            shutil.copytree(name, HERE / name, ignore=shutil.ignore_patterns("*.lock"))
        else:
            shutil.copy(name, HERE / name)


def _begin(tree: trees.Tree, directory: str) -> None:
    """A run that was stopped in the middle."""
    Path(directory).mkdir()
    Path(directory, "recipe.yaml").write_text(product.recipe_yaml(tree))
    history, _ = product.train(tree, directory, stop_at=10)
    product.write_journal(directory, tree, history)


def lay_out(place: Path) -> None:
    """Copies of all of them below `place`."""
    for name in NAMES:
        if (HERE / name).is_dir():
            shutil.copytree(HERE / name, place / name)
        else:
            shutil.copy(HERE / name, place / name)
