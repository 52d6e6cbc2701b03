"""Evaluating generators: nothing twice, a killed one goes on, and no memory that grows with images times images."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mergevq.metrics import precision_recall
from mergevq_platform import loop
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.distributed.ordered_map import Share
from mergevq_platform.evaluation import generator, manifold, neighbours
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.options import EvaluationOptions
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.evaluation.worker import answers
from mergevq_platform.recipe import Recipe, resolve
from mergevq_platform.storage import checkpoints
from mergevq_platform.tasks.task import task_of


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def recipe(small_generator: dict[str, Any]) -> Recipe:
    return resolve(small_generator | {"steps": 2, "checkpoint_every": 2})


@pytest.fixture
def checkpoint(recipe: Recipe, tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    loop.train(recipe, loop.Worker(), LocalHost(tmp_path / "run"))
    return checkpoints.listed(str(tmp_path / "run"))[0]


def measured(
    recipe: Recipe, checkpoint: str, cache: Cache | None, last: int | None = None, **options: Any
) -> tuple[Any, int]:
    """(report, jobs that were done) of an evaluation that dies at the `last` job."""
    evaluator: Any = task_of(recipe).evaluator(
        recipe, checkpoint, EvaluationOptions(device="cpu", cache=cache, **options)
    )
    inner, done = evaluator.passes.answers, 0

    def counting(jobs: Sequence[Any]) -> Iterator[Any]:
        nonlocal done
        for job in jobs:
            if done == last:
                raise KeyboardInterrupt
            done += 1
            yield next(iter(inner([job])))

    evaluator.passes = Passes(counting, cache)
    return evaluator.report("x"), done


def without_rates(report: Any) -> list[dict[str, float]]:
    return [{key: row[key] for key in row if not key.endswith("_per_second")} for row in report.rows]


def test_a_killed_evaluation_goes_on_and_a_second_one_measures_nothing(
    recipe: Recipe, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "BATCHES_PER_JOB", 1)
    cache = Cache(tmp_path / "cache")
    plain, every = measured(recipe, checkpoint, None)
    with pytest.raises(KeyboardInterrupt):
        measured(recipe, checkpoint, cache, last=25)
    report, rest = measured(recipe, checkpoint, cache)
    assert rest == every - 25
    again, none = measured(recipe, checkpoint, cache)
    assert none == 0
    assert again == report
    assert without_rates(report) == without_rates(plain), "kept results are the results, to the last bit"
    assert report.references == plain.references
    assert report.protocol == plain.protocol


def test_what_a_generators_results_depend_on_names_them(
    recipe: Recipe, checkpoint: str, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    _, every = measured(recipe, checkpoint, cache)
    sampled = 2 * 2  # jobs of the images at two scales
    for options in ({"seed": 1}, {"images": 36}, {"scales": [1.0, 3.0]}):
        _, done = measured(recipe, checkpoint, cache, **options)
        assert every > done >= sampled / 2, options
    _, done = measured(recipe, checkpoint, cache, scales=[2.0])
    assert done == 0, "the same points in other words"


def test_precision_and_recall_in_shares_are_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0)
    a, b = (numbers.normal(size=(count, 6)).astype(np.float32) for count in (50, 70))
    expected = precision_recall(torch.from_numpy(a), torch.from_numpy(b))
    passes = Passes(answers(TokenizerWorker, SimpleNamespace(device="cpu")))
    for chunk in (manifold.CHUNK, 16):
        monkeypatch.setattr(manifold, "CHUNK", chunk)
        found = manifold.precision_recall(passes, a, {"of": "a"}, b, {"of": "b"})
        assert found == {"precision": expected.precision, "recall": expected.recall}


WORKER = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
from mergevq_platform.evaluation import manifold, neighbours
neighbours.BLOCK = manifold.CHUNK = 256
numbers = np.random.default_rng(0)
small, train = (numbers.integers(0, 256, (count, 3072), dtype=np.uint8) for count in (3000, 9000))
x, y = (numbers.normal(size=(count, 16)).astype(np.float32) for count in (6000, 6000))
cpu = torch.device("cpu")

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

jobs = [
    (neighbours.NeighboursJob(small[:512], train, 1), 2),
    (manifold.CoveredJob(x[:512], y, np.ones(len(y), np.float32), np.zeros(16)), 2),
    (manifold.RadiiJob(y, np.zeros(16)), 24),
]
for job, shares in jobs:  # what the libraries take when they are first used
    job.on_rows(cpu, shares - 1, shares)
before = peak()
neighbours.NeighboursJob(small, train, 1).on_rows(cpu, 0, 12)
manifold.RadiiJob(y, np.zeros(16)).on_rows(cpu, 0, 24)
manifold.CoveredJob(x, y, np.ones(len(y), np.float32), np.zeros(16)).on_rows(cpu, 0, 24)
print(peak() - before)
"""


@pytest.mark.slow
def test_a_workers_memory_is_of_blocks_not_of_images_times_images() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=300, check=True
    )
    matrix = 3000 * 9000 * 4
    assert int(done.stdout) < matrix / 4


DRIVER = """
import resource, sys
import numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from test_generators import driven
generated, training, width = map(int, sys.argv[2:5])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
driven(generated, training, width)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


class _Sizes:
    """What a driver asks of a spec and a recipe, at any size: the results come from nowhere."""

    def __init__(self, generated: int, training: int, width: int) -> None:
        self.generated, self.training, self.width = generated, training, width
        self.numbers = np.random.default_rng(0)

    def result(self, images: int, *, statistics: bool) -> Any:
        from mergevq_platform.evaluation.generator_results import GeneratorResult
        from mergevq_platform.evaluation.statistics import ImageSetStatistics

        found = None
        if statistics:
            found = ImageSetStatistics()
            found.features = self.numbers.random((images, self.width), np.float32)
            found.pool.update(torch.from_numpy(found.features))
        return GeneratorResult(
            found,
            self.numbers.random((images, 64), np.float32),
            np.arange(images) % 10,
            np.zeros((images, 3 * neighbours.SIDE**2), np.uint8),
            np.zeros((min(images, 2), 16, 16, 3), np.uint8),
            seconds=1.0,
        )

    def __call__(self, jobs: Sequence[Any]) -> Iterator[Any]:
        for job in jobs:
            of, share = (job.of, job.number) if isinstance(job, Share) else (job, 0)
            match of:
                case generator.RealJob(kind="train"):
                    yield self.result(len(job.batches) * self.training // 100, statistics=False)
                case generator.RealJob() | generator.SampledJob():
                    yield self.result(len(job.batches) * self.generated // 100, statistics=True)
                case neighbours.NeighboursJob():
                    rows = range(len(of.small))[share * neighbours.BLOCK :][: neighbours.BLOCK]
                    yield {
                        "distances": np.ones((len(rows), of.k), np.float32),
                        "numbers": np.zeros((len(rows), of.k), np.int64),
                    }
                case manifold.CentreJob():
                    yield {"centre": np.zeros(self.width)}
                case manifold.RadiiJob() | manifold.CoveredJob():
                    rows = range(len(of.features))[share * manifold.CHUNK :][: manifold.CHUNK]
                    name = "radii" if isinstance(of, manifold.RadiiJob) else "covered"
                    yield {name: np.ones(len(rows), np.float32 if name == "radii" else bool)}
                case generator.FitProbeJob():
                    yield {"train_images": len(of.y)}
                case generator.ScoreProbeJob():
                    yield {"top1": 10.0, "low": 9.0, "high": 11.0}


def driven(generated: int, training: int, width: int) -> None:
    """The driver's side of the evaluation of so many images, on results that come from nowhere."""
    evaluator = Driver(_Sizes(generated, training, width))
    report = evaluator.report("x")
    assert len(report.rows) == 2


class Driver(generator.GeneratorEvaluator):
    """The evaluator of 100 batches of every set."""

    def __init__(self, sizes: _Sizes) -> None:
        from types import SimpleNamespace as Some

        from mergevq.metrics import RandomFeaturesConfig

        data = Some(path="", train_split="train", evaluation_split="val")
        generation = Some(images=sizes.generated, batch=sizes.generated // 100, baselines=False)
        recipe = Some(
            data=data,
            generator=Some(generation=generation),
            evaluation=Some(extractor=RandomFeaturesConfig()),
        )
        super().__init__(Some(seed=0, keep=None, budget=None, recipe=recipe), Passes(sizes), [1.5])  # type: ignore[arg-type]

    def _real(self, kind: Any, part: str) -> tuple[Any, dict[str, Any]]:
        jobs = [generator.RealJob(kind, (b, b + 1), part) for b in range(0, 100, 2)]
        return self.passes.result({}, jobs), {"kind": kind}

    def _sampled_key(self, kind: Any, scale: float = 1.0) -> dict[str, Any]:
        return {"kind": kind, "scale": scale}

    def _protocol(self, known: Any, references: Any) -> dict[str, Any]:
        return {"keys": self.keys}


@pytest.mark.slow
def test_a_drivers_memory_is_that_of_a_few_sets() -> None:
    """The images, and not the images times the training images."""
    generated, training, width = 10_000, 20_000, 64
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(Path(__file__).parent), *map(str, (generated, training, width))],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    one = generated * (3 * neighbours.SIDE**2 + 4 * (width + 64))
    sets = training * (3 * neighbours.SIDE**2 + 4 * 64) + 4 * one
    assert sets < generated * training * 4 / 3, "a matrix of distances would not fit"
    assert int(done.stdout) < 1.5 * sets
