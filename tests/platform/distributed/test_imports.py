"""What workers, the run's actor and the command line import at its start: nothing that takes seconds and that only some of them use."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mergevq_platform.recipe import resolve
from mergevq_platform.storage.runs import Run

DRAWING_AND_TIMM = ("timm", "torchvision", "matplotlib", "plotly", "scipy.stats", "sklearn")


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("mergevq_platform.evaluation", (*DRAWING_AND_TIMM, "mlflow", "ray.train", "ray.tune")),
        ("mergevq_platform.distributed.worker", (*DRAWING_AND_TIMM, "mlflow", "ray.tune")),
        ("mergevq_platform.distributed.run_actor", (*DRAWING_AND_TIMM, "torch", "ray.train", "ray.tune")),
        ("mergevq_platform.distributed.failure_reporter", (*DRAWING_AND_TIMM, "torch", "mlflow", "ray.tune")),
        ("mergevq_platform.cli", (*DRAWING_AND_TIMM, "torch", "ray", "mlflow")),
    ],
)
def test_a_process_does_not_import_what_it_may_never_use(module: str, spared: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print(*(name for name in {spared!r} if name in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []


def test_the_runs_actor_takes_up_what_the_run_is_without_the_model_library(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    run = Run.new("run", home=tmp_path)
    start = run.start(resolve(small_recipe), None, fingerprint="f" * 40)
    assert start.dataset is not None
    script = "import pickle, sys; pickle.load(sys.stdin.buffer); print('torch' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(start), capture_output=True, check=True
    )
    assert answer.stdout == b"False\n"
