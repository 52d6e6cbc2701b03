"""A run in the store, trained in this process without Ray: what evaluations and samples start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mergevq_platform import loop
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.recipe import ResolvedRecipe
from mergevq_platform.storage import checkpoints
from mergevq_platform.storage.runs import Run


def trained_run(name: str, home: Path, recipe: Callable[[], ResolvedRecipe]) -> Run:
    """The run called `name` of a home; trained by the recipe where it is not there yet."""
    run = Run(name, home, str(home / "ray"))
    if not run.directory.exists():
        run.directory.mkdir(parents=True)
        resolved = recipe()
        (run.directory / "recipe.yaml").write_text(checkpoints.recipe_yaml(resolved))
        loop.train(resolved, loop.Worker(), LocalHost(run.directory))
        run.start(resolved, None).open().close("FINISHED")
    return run
