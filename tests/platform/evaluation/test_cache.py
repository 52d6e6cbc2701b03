"""Nothing is measured twice: answers are kept by what they depend on, and a killed evaluation goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mergevq.config import to_tree
from mergevq.metrics import CodeUsage, FeatureStatistics, Psnr
from mergevq_platform.evaluation import cache as caching
from mergevq_platform.evaluation import cache_files, tokenizer_passes
from mergevq_platform.evaluation.cache import Cache
from mergevq_platform.evaluation.passes import Passes
from mergevq_platform.evaluation.results import merge
from mergevq_platform.evaluation.spec import EvaluationSpec, identity
from mergevq_platform.evaluation.tokenizer import TokenizerEvaluator
from mergevq_platform.evaluation.tokenizer_results import ReconstructionResult
from mergevq_platform.evaluation.tokenizer_worker import TokenizerWorker
from mergevq_platform.evaluation.worker import Spec, answers
from mergevq_platform.recipe import Recipe, resolve


class Counting:
    """Answers in this process; counts the jobs and dies at the `last`."""

    def __init__(self, kind: Callable[[Any], Any], spec: Spec, last: int | None = None) -> None:
        self.inner, self.last, self.asked = answers(kind, spec), last, 0

    def __call__(self, jobs: Sequence[Any]) -> Iterator[Any]:
        for job in jobs:
            if self.asked == self.last:
                raise KeyboardInterrupt
            self.asked += 1
            yield next(iter(self.inner([job])))


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> Recipe:
    small_recipe["evaluation"] |= {"batch": 12, "images": 40, "probe_images": 48}
    return resolve(small_recipe)


@pytest.fixture
def spec(recipe: Recipe) -> EvaluationSpec:
    """The untrained tokenizer: what a cache does has nothing to do with training."""
    return EvaluationSpec(None, recipe, recipe.data.path, "cpu")


@pytest.fixture
def measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[list[dict[str, float]], int]]:
    monkeypatch.setattr(tokenizer_passes, "BATCHES_PER_JOB", 1)

    def measured(spec: EvaluationSpec, last: int | None = None, cache: bool = True) -> Any:
        counting = Counting(TokenizerWorker, spec, last)
        passes = Passes(counting, Cache(tmp_path / "cache") if cache else None)
        return TokenizerEvaluator(spec, passes, (9,)).report("x").rows, counting.asked

    return measured


def test_a_killed_evaluation_goes_on_and_a_second_one_measures_nothing(
    spec: EvaluationSpec, measured: Callable[..., Any], tmp_path: Path
) -> None:
    plain, every = measured(spec, cache=False)
    with pytest.raises(KeyboardInterrupt):
        measured(spec, last=6)
    rows, rest = measured(spec)
    assert rest == every - 6
    assert measured(spec) == (rows, 0)
    assert rows == plain, "kept answers are the answers, to the last bit"
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".safetensors"]


def test_what_an_answer_depends_on_names_it(
    spec: EvaluationSpec, recipe: Recipe, measured: Callable[..., Any], image_set: Path, tmp_path: Path
) -> None:
    from mergevq_platform.data import write_shapes

    _, every = measured(spec)
    write_shapes(tmp_path / "others", images=192, val_images=64, size=16, seed=1)
    changed = [
        resolve(to_tree(recipe) | {"seed": 1}),
        resolve(to_tree(recipe) | {"evaluation": to_tree(recipe)["evaluation"] | {"images": 36}}),
        resolve(to_tree(recipe) | {"data": to_tree(recipe)["data"] | {"path": str(tmp_path / "others")}}),
        resolve(to_tree(recipe) | {"data": to_tree(recipe)["data"] | {"background": "black"}}),
    ]
    for other in changed:
        _, asked = measured(EvaluationSpec(None, other, other.data.path, "cpu"))
        assert asked > every / 4, (
            "another seed, count, image set or background is another tokenizer or another number"
        )


def test_weights_are_known_by_what_they_hold(spec: EvaluationSpec, tmp_path: Path) -> None:
    import mergevq

    for name, seed in (("a", 0), ("same", 0), ("b", 1)):
        torch.manual_seed(seed)
        mergevq.save(mergevq.create("test_gr"), tmp_path / name)
    a, same, b = (
        identity(EvaluationSpec(str(tmp_path / name), spec.recipe, spec.data, "cpu"))
        for name in ("a", "same", "b")
    )
    assert a == same
    assert a != b


def test_files_give_back_what_was_put_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    part = ReconstructionResult(codes=CodeUsage(8))
    part.true.pool.update(torch.randn(5, 3))
    part.true.features = np.random.rand(5, 3).astype(np.float32)
    part.psnr.update(torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))
    assert part.codes is not None
    part.codes.update(torch.arange(6))
    features = {"cls": np.random.rand(4, 3).astype(np.float32), "label": np.arange(4)}
    numbers = {"top1": 12.5, "nothing": float("nan")}
    for name, answer in (("part", part), ("features", features), ("numbers", numbers)):
        cache_files.save(tmp_path / name, answer)
    again = cache_files.load(tmp_path / "part")
    assert isinstance(again, ReconstructionResult)
    assert isinstance(again.true.pool, FeatureStatistics)
    assert torch.equal(again.true.pool.outer, part.true.pool.outer)
    assert np.array_equal(again.true.features, part.true.features)
    assert again.true.spatial is None
    assert again.psnr.compute() == part.psnr.compute()
    assert again.codes is not None
    assert again.codes.compute() == part.codes.compute()
    assert again.recovery.count == 0
    assert merge([again, part]).psnr.count == 4
    for name, array in cache_files.load(tmp_path / "features").items():
        assert array.dtype == features[name].dtype
        assert np.array_equal(array, features[name])
    assert str(cache_files.load(tmp_path / "numbers")) == str(numbers)


def test_a_damaged_file_is_measured_again(
    spec: EvaluationSpec, measured: Callable[..., Any], tmp_path: Path
) -> None:
    rows, _ = measured(spec)
    file = next((tmp_path / "cache").glob("features-*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    again, asked = measured(spec)
    assert again == rows
    assert asked > 0


def test_the_longest_unused_go_when_room_runs_out(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit_bytes=30_000)
    value = {"x": np.zeros(1024, np.float64)}

    def kept(name: str) -> int:
        asked: list[int] = []
        cache.through(
            {"kind": "features", "name": name}, [0], lambda jobs: asked.extend(jobs) or [value] * len(jobs)
        )
        return len(asked)

    for age, name in enumerate("abc"):
        before = set(tmp_path.iterdir())
        assert kept(name) == 1
        (made,) = set(tmp_path.iterdir()) - before
        os.utime(made, (1000 + age, 1000 + age))
    assert kept("a") == 0, "used: now the youngest"
    assert kept("d") == 1
    assert [kept(name) for name in "adc"] == [0, 0, 0]
    assert kept("b") == 1
    assert cache.bytes <= 30_000
    assert cache.clear() > 0
    assert cache.bytes == 0


def test_two_at_once_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    cache, psnr = Cache(tmp_path), Psnr()

    def nested(jobs: Sequence[int]) -> Iterator[Psnr]:
        for _ in jobs:
            cache.through(
                {"kind": "k"}, [1, 2], lambda same: [psnr for _ in same]
            )  # another asks the same meanwhile
            yield psnr

    assert isinstance(cache.through({"kind": "k"}, [1, 2], nested), Psnr)
    assert len(list(tmp_path.glob(f"*{caching.SUFFIX}"))) == 1
