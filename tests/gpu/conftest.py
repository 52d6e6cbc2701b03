"""What needs a GPU: `make test-gpu` runs it, and skips it with a reason where there is none.

These tests import neither Ray nor MLflow: a GPU machine with the model's own requirements alone runs them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.hookimpl(tryfirst=True)  # before markers choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder needs CUDA."""
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Products in float32 proper, not tf32, so that the CPU's numbers are the reference."""
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield
    torch.set_float32_matmul_precision("highest")
