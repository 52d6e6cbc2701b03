"""A real sweep on Ray; `python tests/golden/record.py --ray` records it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.golden import product, trees

NAME = "sweep_on_ray"
FIXTURES = Path(__file__).parent / "fixtures"


def swept(home: Path, name: str) -> Any:
    """The trials and the winner of the sweep `name` at `home`, whose Ray cluster runs."""
    tree = trees.smallest_tokenizer()
    tree["data"] = tree["data"] | {"path": str(FIXTURES / "images")}
    tree |= {"steps": 4, "checkpoint_every": 4}
    tree["evaluation"] = {
        "keeps": [9, 16],
        "batch": 16,
        "images": 32,
        "probe_images": 48,
        "untrained_baseline": False,
    }
    return product.sweep_on_ray(tree, home, name)
