"""A training that something happens to: what was seen when, and whether its end is that of the undisturbed run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergevq_platform.storage.runs import Run
from mergevq_platform.tracking.store import Store
from raynodes import HERE, Driver, Nodes, journal_of, same, state, step_of, wait_until, write_recipe

FAULT_STEP = 12  # after the first checkpoint, and well before the next


def level(nodes: Nodes, count: int) -> None:
    """Bring the cluster to `count` nodes for workers."""
    nodes.nodes = [node for node in nodes.nodes if node.process.poll() is None]
    while len(nodes.nodes) > count:
        nodes.nodes.pop().kill()
    if missing := count - len(nodes.nodes):
        nodes.add(*[HERE] * missing)


@dataclass
class Disturbed:
    """A training with a fault in it, and when things happened."""

    nodes: Nodes
    home: Path
    tree: dict[str, Any]
    name: str
    arguments: tuple[str, ...] = ()
    storage: Path | None = None
    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    seen: list[tuple[float, int]] = field(default_factory=list)
    struck_at: float = 0.0

    def __post_init__(self) -> None:
        self.run = Run(self.name, self.home, str(self.storage or self.home / "ray"))
        self.ended = threading.Event()
        self.start(write_recipe(self.tree, self.home), "--name", self.name)
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def start(self, *arguments: str) -> None:
        """Start the driver, first or again."""
        storage = ("--storage", str(self.storage)) if self.storage else ()
        self.driver = Driver(
            self.nodes,
            self.home,
            *arguments,
            *storage,
            *self.arguments,
            prefix=self.prefix,
            **self.environment,
        )

    def reach(self, step: int = FAULT_STEP, seconds: float = 400.0) -> None:
        """Wait for a step."""
        wait_until(
            lambda: step_of(self.run) >= step or self.driver.process.poll() is not None,
            seconds,
            f"step {step}",
        )
        assert self.driver.process.poll() is None, self.driver.output

    def strike(self, fault: Callable[[], object]) -> None:
        """Let the fault happen now."""
        self.struck_at = time.monotonic()
        fault()

    def finish(self, seconds: float = 900.0) -> str:
        """Wait for a good end; the driver's output."""
        status = self.driver.finish(seconds)
        self.close()
        assert status == 0, self.driver.output
        return self.driver.output

    def close(self) -> None:
        """Stop watching."""
        time.sleep(0.2)
        self.ended.set()
        self.watcher.join()

    def noticed(self, text: str) -> float:
        """Seconds from the fault until the driver said so."""
        at = self.driver.said(text, self.struck_at)
        assert at is not None, f"'{text}' was not said:\n{self.driver.output}"
        return at - self.struck_at

    def again(self, after: float = 0.0) -> float:
        """Seconds from the fault until a step that is new was done, `after` seconds having passed."""
        before = max((step for at, step in self.seen if at <= self.struck_at + after), default=0)
        return (
            next(at for at, step in self.seen if at > self.struck_at + after and step > before)
            - self.struck_at
        )

    def check(self, expected: dict[str, Any]) -> str:
        """Weights, journal, MLflow and cluster are as if nothing had happened."""
        assert same(state(self.run), expected["state"])
        assert journal_of(self.run) == expected["journal"]
        delivered(self.home, self.name, expected["journal"])
        wait_until(lambda: self.nodes.left_behind() == ([], []), 60, "nothing left behind")
        return "bit for bit"

    def _watch(self) -> None:
        step = 0
        while not self.ended.wait(0.05):
            if (now := step_of(self.run)) > step:
                step = now
                self.seen.append((time.monotonic(), step))


def delivered(home: Path, name: str, journal: dict[str, dict[int, float]], uri: str | None = None) -> None:
    """MLflow has every metric of every step, once."""
    client = Store.at(home, uri).client()
    experiment = client.get_experiment_by_name("mergevq")
    (run,) = client.search_runs([experiment.experiment_id], f"tags.`mergevq.run` = '{name}'")
    assert run.info.status == "FINISHED"
    for key, points in journal.items():
        history = client.get_metric_history(run.info.run_id, key)
        assert sorted((point.step, point.value) for point in history) == sorted(points.items()), key
