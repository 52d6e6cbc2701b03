"""What every worker imports at its start: nothing that takes seconds and that only some of them use."""

from __future__ import annotations

import subprocess
import sys

import pytest

DRAWING_AND_TIMM = ("timm", "torchvision", "matplotlib", "plotly", "scipy.stats", "sklearn")


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("mergevq_platform.evaluation", (*DRAWING_AND_TIMM, "mlflow", "ray.train", "ray.tune")),
        ("mergevq_platform.distributed.worker", (*DRAWING_AND_TIMM, "mlflow", "ray.tune")),
    ],
)
def test_a_worker_does_not_import_what_it_may_never_use(module: str, spared: tuple[str, ...]) -> None:
    script = f"import sys, {module}; print(*(name for name in {spared!r} if name in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []
