"""The whole training loop on a GPU: precision, compilation, resuming, and one rank of NCCL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import mergevq
from mergevq_platform import loop
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.recipe import resolve
from mergevq_platform.storage import checkpoints

CUDA = torch.device("cuda", 0)


def train(tree: dict[str, Any], directory: Path, **options: Any) -> LocalHost:
    directory.mkdir(exist_ok=True)
    host = LocalHost(directory, **options)
    loop.train(resolve(tree), loop.Worker(device=CUDA), host)
    return host


def weights(directory: Path) -> dict[str, torch.Tensor]:
    newest = Path(checkpoints.listed(str(directory))[0])
    return torch.load(newest / "resume.pt", weights_only=True, map_location="cpu")["training"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_training_learns_and_its_export_loads_on_a_cpu(
    small_recipe: dict[str, Any], tmp_path: Path, precision: str
) -> None:
    host = train(
        small_recipe | {"steps": 60, "checkpoint_every": 60, "precision": precision}, tmp_path / "run"
    )
    first, last = (
        sum(values["train/reconstruction"] for _, values in part)
        for part in (host.history[:10], host.history[-10:])
    )
    assert last < 0.9 * first
    assert host.system[-1][1]["system/images_per_second"] > 0
    tokenizer = mergevq.load(Path(checkpoints.listed(str(tmp_path / "run"))[0])).eval()
    with torch.inference_mode():
        assert tokenizer.encode(torch.rand(2, 3, 16, 16) * 2 - 1, 9).indices.shape == (2, 9)


def test_a_stopped_and_resumed_run_is_the_undisturbed_run(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    # cuDNN and atomic additions may sum in another order from run to run unless told not to.
    tree = small_recipe | {"steps": 8, "checkpoint_every": 100}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        train(tree, tmp_path / "whole")
        train(tree, tmp_path / "parts", stop_at=4)
        train(tree, tmp_path / "parts")
    finally:
        torch.use_deterministic_algorithms(False)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_compiled_training_is_the_eager_one_within_rounding(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    histories = [
        train(small_recipe | {"steps": 6, "compile": compiled}, tmp_path / str(compiled)).history
        for compiled in (False, True)
    ]
    torch._dynamo.reset()
    for (_, eager), (_, compiled) in zip(*histories, strict=True):
        assert compiled["train/reconstruction"] == pytest.approx(eager["train/reconstruction"], rel=2e-2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recorded_training_is_the_launched_one_within_rounding(
    small_recipe: dict[str, Any], tmp_path: Path, precision: str
) -> None:
    tree = small_recipe | {"steps": 16, "precision": precision}
    hosts = [train(tree | {"cuda_graphs": graphs}, tmp_path / f"{graphs}") for graphs in (False, True)]
    assert not [warning for host in hosts for warning in host.warnings if "CUDA graph" in warning]
    for (_, launched), (_, recorded) in zip(*(host.history for host in hosts), strict=True):
        for name in ("train/reconstruction", "train/total", "train/tokenizer_gradient_norm"):
            assert recorded[name] == pytest.approx(launched[name], rel=2e-2)


def test_one_rank_of_nccl_trains_as_no_group_does(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = small_recipe | {"steps": 4}
    alone = train(tree, tmp_path / "alone")
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}.items():
        monkeypatch.setitem(os.environ, name, value)
    dist.init_process_group("nccl", rank=0, world_size=1, device_id=CUDA)
    try:
        total = torch.ones(3, device=CUDA)
        dist.all_reduce(total)
        grouped = train(tree, tmp_path / "grouped")
    finally:
        dist.destroy_process_group()
    for (_, one), (_, other) in zip(alone.history, grouped.history, strict=True):
        assert other["train/total"] == pytest.approx(one["train/total"], rel=1e-3)
