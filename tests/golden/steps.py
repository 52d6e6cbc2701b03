"""Twenty steps of a training at one worker, the first ten at two: what is reported, the gradients, the state at the end of twenty.

Gradients are read where PyTorch's optimizers begin a step, after clipping; so nothing of the loop needs to be known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import leaves
import machine
import product
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import trees
from torch.optim.optimizer import register_optimizer_step_pre_hook

RESUMED = (
    "tokenizer_gr_self",
    "tokenizer_gr_stand_in",
    "generator_codes_mergear",
    "recovery_generated",
    "finetune",
    "probe",
)
STOP = 7  # steps before a resumed run goes on
TOGETHER = 10  # steps of two workers: the first validation is among them
Tree = dict[str, Any]


@contextmanager
def gradients() -> Iterator[list[Tree]]:
    """The norm of every parameter group's gradients and a hash of all, of each optimizer's step."""
    found: list[Tree] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        groups = [[p.grad for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
        norms = [float(sum(g.double().square().sum() for g in group)) ** 0.5 for group in groups]
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        everything = [gradient for group in groups for gradient in group]
        found.append({"norms": norms, "rates": rates, "here": leaves.digest(*everything)})

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()


def one_worker(name: str, tree: Tree) -> Tree:
    """The record of a training in this process; its run stays in `runs/NAME`."""
    directory = f"runs/{name}"
    with gradients() as seen:
        history, warnings = product.train(trees.of_workers(tree, 1), directory)
    checkpoint = product.newest(directory)
    found = {
        "checkpoint": Path(checkpoint).name,
        **_record(history, warnings, seen),
        "state": leaves.checkpoint(checkpoint),
    }
    if name in RESUMED:
        product.train(trees.of_workers(tree, 1), f"parts/{name}", stop_at=STOP)
        first = Path(product.newest(f"parts/{name}")).name
        rest, _ = product.train(trees.of_workers(tree, 1), f"parts/{name}")
        parts = leaves.checkpoint(product.newest(f"parts/{name}"))
        found["resumed"] = {
            "from": first,
            "steps": sorted({step for step, _ in rest}),
            "is_the_undisturbed_run": parts == found["state"]
            and [row for row in history if row[0] > STOP] == rest,
        }
    return found


def two_workers(named: dict[str, Tree]) -> dict[str, Tree]:
    """The same of two processes that share each batch."""
    Path("two").mkdir()
    mp.start_processes(_rank, args=(named,), nprocs=2, start_method="forkserver")
    ranks = [json.loads(Path(f"two/{rank}.json").read_text()) for rank in range(2)]
    for name, record in ranks[0].items():
        record["ranks_have_the_same_gradients"] = record["gradients"] == ranks[1][name]["gradients"]
    return ranks[0]


def _rank(rank: int, named: dict[str, Tree]) -> None:
    machine.one_thread()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = Path("two/rendezvous").absolute()
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found: dict[str, Tree] = {}
    try:
        for name, tree in named.items():
            directory = f"two/{name}"
            with gradients() as seen:
                history, warnings = product.train(
                    trees.of_workers(tree, 2), directory, rank=rank, world_size=2, stop_at=TOGETHER
                )
            dist.barrier()
            found[name] = _record(history, warnings, seen)
    finally:
        dist.destroy_process_group()
    Path(f"two/{rank}.json").write_text(json.dumps(found))


def _record(history: list, warnings: list[str], seen: list[Tree]) -> Tree:
    reports: dict[str, list] = {}
    for step, values in history:
        for key, value in values.items():
            # A count is the same everywhere.
            plain = int(value) if key == "train/kept_tokens" else value
            reports.setdefault(key, []).append([step, plain])
    return {
        "reports": {
            key: {"steps": [step for step, _ in rows], "values": [value for _, value in rows]}
            for key, rows in reports.items()
        },
        "warnings": warnings,
        "gradients": seen,
    }
