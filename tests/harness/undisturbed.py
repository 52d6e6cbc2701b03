"""What a run must end with: the same loop in processes of its own that nothing disturbs, without Ray."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import ranks
from mergevq_platform import loop
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.recipe import resolve
from mergevq_platform.storage import checkpoints


def train(tree: dict[str, Any], directory: Path, *, world_size: int) -> dict[str, Any]:
    """Train a recipe on `world_size` ranks; returns the last checkpoint's state and rank 0's metrics (name -> step -> value)."""
    directory.mkdir(parents=True)
    ranks.run(_rank, (tree, str(directory), world_size), world_size)
    newest = Path(checkpoints.listed(str(directory))[0])
    history = torch.load(directory / "history.pt", weights_only=True)
    metrics: dict[str, dict[int, float]] = {}
    for step, values in history:
        for name, value in values.items():
            metrics.setdefault(name, {})[step] = value
    return {"state": torch.load(newest / "resume.pt", weights_only=True), "journal": metrics}


def _rank(rank: int, tree: dict[str, Any], directory: str, world_size: int) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    if world_size > 1:
        meeting = f"file://{directory}/rendezvous"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    host = LocalHost(Path(directory))
    loop.train(resolve(tree), loop.Worker(rank=rank, world_size=world_size), host)
    if rank == 0:
        torch.save(host.history, Path(directory) / "history.pt")
    if world_size > 1:
        dist.barrier()
        dist.destroy_process_group()
