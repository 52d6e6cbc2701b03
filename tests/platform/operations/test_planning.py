"""Memory, time and traffic on paper: sizes to the byte, arithmetic by hand, limits where they are."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mergevq.config import to_tree
from mergevq.errors import InputError
from mergevq.generation import build_generator
from mergevq_platform import cli, loop, recipe
from mergevq_platform.data import BatchPartition, open_dataset
from mergevq_platform.distributed import local
from mergevq_platform.operations import planning
from mergevq_platform.operations.planning.activations import saved_for_backward
from mergevq_platform.operations.planning.measuring import StepMeasurement
from mergevq_platform.operations.planning.prediction import (
    Links,
    all_reduce_seconds,
    efficiency,
    predict,
    scaling,
)

LINKS = Links(within_gbps=20, between_gbps=10, latency_seconds=0)
STEP = StepMeasurement(
    recipe="small",
    machine="a test",
    device="cuda",
    micro_batch=4,
    call_seconds=0.010,
    image_seconds=0.005,
    update_seconds=0.002,
    input_seconds=0.001,
    gradient_bytes=10**8,
    state_bytes=10**9,
    activation_bytes=10**7,
    checkpoint_bytes=5 * 10**8,
    flops=1e10,
)


@pytest.fixture
def small(small_recipe: dict[str, Any]) -> recipe.Recipe:
    return recipe.resolve(small_recipe)


def of(small: recipe.Recipe, nodes: int, gpus: int, links: Links = LINKS) -> planning.ScalingPrediction:
    return predict(small, STEP, nodes=nodes, gpus=gpus, links=links, images=800)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[recipe.Recipe, StepMeasurement]:
    tree = {
        "name": "small",
        "task": {
            "preset": "test_gr",
            "keep": {"kind": "list", "counts": [4, 9, 16]},
            "losses": {"adversarial": {"kind": "none"}},
        },
        "data": {"path": "/not/needed", "views": {"image_size": 16}},
        "steps": 2,
        "global_batch": 8,
        "micro_batch": 8,
        "optimizer": {"schedule": {"kind": "constant"}},
        "cluster": {"device": "cpu"},
    }
    resolved = recipe.complete(tree)
    return resolved, planning.measure(resolved, device=torch.device("cpu"), repeats=2)


def test_measured_sizes_are_those_of_a_real_run(
    measured: tuple[recipe.Recipe, StepMeasurement], image_set: Path, tmp_path: Path
) -> None:
    resolved, sizes = measured
    resolved = replace(resolved, data=replace(resolved.data, path=str(image_set)))
    training = loop.build(resolved, open_dataset(str(image_set), "train"))
    trained = sum(p.numel() * 4 for p in training.parameters() if p.requires_grad)
    assert sizes.gradient_bytes == trained
    # Parameters, gradients, two moments, and the moving average of the model; buffers and step counters are small.
    average = sum(t.numel() * t.element_size() for t in training.model().state_dict().values())
    assert sizes.state_bytes == pytest.approx(4 * trained + average, rel=0.05)
    host = local.LocalHost(tmp_path)
    loop.train(resolved, loop.Worker(), host)
    latest = host.latest()
    assert latest is not None
    written = sum(file.stat().st_size for file in latest.iterdir())
    assert sizes.checkpoint_bytes == pytest.approx(written, rel=0.01)
    assert sizes.call_seconds + sizes.image_seconds > 0
    assert sizes.flops > 0


@pytest.mark.parametrize("preset", ["test_raster", "test_mergear", "test_random_order"])
def test_a_generator_is_measured_on_codes_that_need_not_be_made_yet(preset: str) -> None:
    tree = {
        "name": "generator",
        "task": {"kind": "generator", "preset": preset, "codes": "/not/made", "model": {"classes": 1000}},
        "data": {"path": "/not/needed", "views": {"image_size": 16}},
        "steps": 2,
        "global_batch": 8,
        "micro_batch": 4,
        "optimizer": {"schedule": {"kind": "constant"}},
        "cluster": {"device": "cpu"},
    }
    resolved = recipe.complete(tree)
    sizes = planning.measure(resolved, device=torch.device("cpu"), repeats=1)
    trained = sum(p.numel() * 4 for p in build_generator(resolved.generator.model).parameters())
    assert sizes.gradient_bytes == trained
    assert sizes.input_seconds == 0
    assert sizes.activation_bytes > 0
    asked = predict(resolved, sizes, nodes=1, gpus=2, links=LINKS, images=800)
    lines = planning.conclusions(resolved, sizes, asked, [asked])
    assert "input: codes, which take no decoding" in lines


def test_saved_bytes_are_counted_once_and_only_while_they_live() -> None:
    x = torch.randn(1000, requires_grad=True)
    with saved_for_backward() as saved:
        y = (x * 2).exp()  # exp keeps its result, x * 2 keeps nothing of x
        z = y * y  # keeps y, which is kept already
        assert saved.now == saved.peak == 4000
        z.sum().backward()
        del y, z
    assert saved.now == 0
    with saved_for_backward() as saved:
        for _ in range(3):
            (x.exp().sum()).backward()
    assert saved.peak == 4000  # one after the other, never three at once
    assert saved.peak_without({next(iter(saved.peaks))}) == 0


def test_activations_grow_with_the_batch(small: recipe.Recipe) -> None:
    few, many = (of(replace(small, micro_batch=m), 1, 1).memory_bytes for m in (2, 8))
    assert many - few == 6 * STEP.activation_bytes


@given(st.integers(2, 64), st.floats(1e6, 1e10), st.floats(1, 400))
def test_a_ring_moves_between_one_and_two_times_the_gradients(
    workers: int, count: float, gbps: float
) -> None:
    links = Links(within_gbps=gbps, between_gbps=1e9, latency_seconds=0)
    seconds = all_reduce_seconds(count, 1, workers, links)
    assert count * 8 / (gbps * 1e9) <= seconds * (1 + 1e-9) < 2 * count * 8 / (gbps * 1e9)


def test_the_slowest_link_of_the_ring_counts_and_one_worker_sends_nothing() -> None:
    assert all_reduce_seconds(10**8, 1, 1, LINKS) == 0
    assert all_reduce_seconds(10**8, 1, 2, LINKS) == pytest.approx(10**8 * 8 / 20e9)
    assert all_reduce_seconds(10**8, 2, 1, LINKS) == pytest.approx(10**8 * 8 / 10e9)
    assert all_reduce_seconds(10**8, 2, 2, LINKS) == pytest.approx(1.5 * 10**8 * 8 / 10e9)


def test_a_step_is_its_micro_batches_its_update_and_what_it_waits_for(small: recipe.Recipe) -> None:
    alone = of(small, 1, 1)  # 8 images as 2 micro-batches of 4
    assert (alone.accumulation, alone.micro_batch) == (2, 4)
    assert alone.step_seconds == pytest.approx(2 * (0.010 + 4 * 0.005) + 0.002)
    pair = of(small, 1, 2)
    assert pair.step_seconds == pytest.approx(0.010 + 4 * 0.005 + 0.002 + 0.04)
    assert pair.all_reduce_share == pytest.approx(0.04 / pair.step_seconds)
    hidden = of(small, 1, 2, replace(LINKS, overlap=1.0))
    assert hidden.exposed_seconds == pytest.approx(0.04 - 2 / 3 * 0.030)
    assert alone.epoch_hours == pytest.approx(100 * alone.step_seconds / 3600)
    assert alone.checkpoint_bytes_per_second == pytest.approx(5e8 / (4 * alone.step_seconds))


def test_more_devices_never_slow_compute_and_efficiency_falls(small: recipe.Recipe) -> None:
    rows = scaling(replace(small, global_batch=64), STEP, nodes=4, gpus=2, links=LINKS, images=800)
    assert [row.workers for row in rows] == [1, 2, 4, 8, 16]
    assert all(a.compute_seconds > b.compute_seconds for a, b in pairwise(rows))
    shares = [efficiency(row, rows[0]) for row in rows]
    assert shares[0] == 1
    assert shares == sorted(shares, reverse=True)
    end = planning.stops_scaling(rows)
    assert end is not None
    assert efficiency(end, rows[0]) < 0.5
    assert efficiency(rows[rows.index(end) - 1], rows[0]) >= 0.5


def test_a_batch_is_dealt_as_training_deals_it(small: recipe.Recipe) -> None:
    odd = of(small, 3, 1)  # 8 images over three workers: two of them take three
    assert (odd.accumulation, odd.micro_batch) == (1, 3)
    assert odd.compute_seconds == pytest.approx(0.010 + 3 * 0.005 + 0.002)
    seven = predict(
        replace(small, global_batch=14), STEP, nodes=1, gpus=2, links=LINKS, images=800
    )  # seven each: two passes of four at the most
    assert (seven.accumulation, seven.micro_batch) == (2, 4)
    for workers in range(1, 9):
        partition = BatchPartition.of(8, 4, workers)
        most = [
            max(sum(b - a for a, b in partition.positions(i, rank, workers)) for rank in range(workers))
            for i in range(partition.passes)
        ]
        row = of(small, workers, 1)
        assert (row.accumulation, row.micro_batch) == (len(most), max(most))
    with pytest.raises(InputError, match="fewer images than there are workers, 9"):
        of(small, 9, 1)


@pytest.mark.parametrize(("option", "given"), [("--nodes", {"nodes": 0}), ("--gpus", {"gpus": -1})])
def test_no_devices_are_refused_by_the_option(
    small: recipe.Recipe, option: str, given: dict[str, int]
) -> None:
    with pytest.raises(InputError, match=f"{option} (0|-1): it must be at least 1"):
        predict(small, STEP, **{"nodes": 1, "gpus": 1} | given, links=LINKS, images=800)


def test_a_named_device_goes_by_counted_flops(small: recipe.Recipe) -> None:
    fast = planning.on_device(STEP, 10)
    assert fast.image_seconds == pytest.approx(1e10 / 1e13)
    assert fast.gradient_bytes == STEP.gradient_bytes


def test_the_verb_reads_a_measurement_and_says_what_it_comes_to(
    small_recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small_recipe))
    (tmp_path / "step.json").write_text(json.dumps(to_tree(STEP)))
    words = ["plan", str(tmp_path / "small.yaml"), "--nodes", "2", "--measured", str(tmp_path / "step.json")]
    assert cli.run([*words, "--memory-gib", "2", "--link-gbps", "1"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\*\s+2 x 1 ", text)
    assert "2 GiB holds it" in text
    assert "stops scaling at 2 x 1" in text
    assert "(all-reduce)" in text
    before = to_tree(STEP)
    before["picture_seconds"] = before.pop("image_seconds")  # as it was called before
    (tmp_path / "step.json").write_text(json.dumps(before))
    assert planning.load_measurement(tmp_path / "step.json") == STEP
    (tmp_path / "step.json").write_text('{"recipe": "x"}')
    assert cli.run(words) == 2
    assert "missing key" in capsys.readouterr().err
