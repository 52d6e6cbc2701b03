"""Recorded passes where no GPU is: which steps share a recording, gradients that stay in place, and what cannot be recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mergevq
from mergevq import cuda_graphs
from mergevq.training.tokenizer import build_training
from mergevq_platform import loop, recorded_passes
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.recipe import resolve
from mergevq_platform.storage import checkpoints


def train(tree: dict[str, Any], directory: Path) -> LocalHost:
    directory.mkdir()
    host = LocalHost(directory)
    loop.train(resolve(tree), loop.Worker(), host)
    return host


def weights(directory: Path) -> dict[str, torch.Tensor]:
    newest = Path(checkpoints.listed(str(directory))[0])
    return torch.load(newest / "resume.pt", weights_only=True)["training"]


class Enabled(cuda_graphs.CudaGraphs):
    """Graphs that a CPU is asked for."""

    def __init__(self, device: torch.device, **options: Any) -> None:
        super().__init__(torch.device("cuda"), **options)


def test_gradients_that_stay_in_place_train_the_same_weights(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small_recipe | {"steps": 4}
    plain = train(tree, tmp_path / "plain")
    calls = []

    def call(_: Any, key: Any, function: Any, *arguments: torch.Tensor) -> torch.Tensor:
        calls.append(key)
        return function(*arguments)

    monkeypatch.setattr(Enabled, "__call__", call)
    monkeypatch.setattr(recorded_passes, "CudaGraphs", Enabled)
    recorded = train(tree, tmp_path / "recorded")
    assert len(calls) >= 4
    assert recorded.history == plain.history
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "recorded")
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_what_cannot_be_recorded_is_said_once_and_trains_as_ever(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small_recipe | {"steps": 4}
    plain = train(tree, tmp_path / "plain")

    def refused(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(recorded_passes, "CudaGraphs", Enabled)
    monkeypatch.setattr(cuda_graphs, "_recorded", refused)
    monkeypatch.setattr(cuda_graphs, "_leave_recording", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    tried = train(tree, tmp_path / "tried")
    said = [warning for warning in tried.warnings if "CUDA graph" in warning]
    assert len(said) == 1
    assert "(operation not permitted when stream is capturing)" in said[0]
    assert tried.history == plain.history


@pytest.mark.parametrize("change", [{"cuda_graphs": False}, {"precision": "float16"}], ids=str)
def test_it_is_off_where_it_is_not_wanted_or_cannot_be(
    small_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(recorded_passes, "CudaGraphs", Enabled)

    def enabled(tree: dict[str, Any], workers: int = 1) -> bool:
        training = build_training({"adversarial": {"kind": "none"}}, tokenizer())
        worker = loop.Worker(world_size=workers)
        return recorded_passes.RecordedPasses(resolve(tree), training, None, worker, print).enabled  # type: ignore[arg-type]

    assert enabled(small_recipe)
    assert not enabled(small_recipe, workers=2)
    assert not enabled(small_recipe | change)


def test_steps_share_a_recording_where_the_losses_take_the_same_numbers() -> None:
    config = {
        "adversarial": {"kind": "patch", "start_step": 7, "discriminator": {"num_layers": 1}},
        "entropy": {"annealing": {"start_factor": 2.0, "steps": 3}},
    }
    training = build_training(config, tokenizer())
    variants = [training.variant(step) for step in range(10)]
    assert len(set(variants[:4])) == 4
    assert len(set(variants[3:7])) == 1
    assert len(set(variants[7:])) == 1
    assert variants[6] != variants[7]


def tokenizer() -> mergevq.MergeVQ:
    return mergevq.create("test_gr")
