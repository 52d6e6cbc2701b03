"""Findings from the nodes' reports. The reports here are made up; real nodes are examined in tests/cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mergevq_platform import recipe
from mergevq_platform.operations.bandwidth import MESSAGE_BYTES, AllReduce
from mergevq_platform.operations.doctor import checks, node, summary
from mergevq_platform.operations.doctor.checks import Finding
from mergevq_platform.operations.doctor.examination import ThisMachine, _skews
from mergevq_platform.operations.doctor.node import NodeQuery, NodeReport

GIB = 2**30
GOOD = NodeReport(
    name="a",
    versions={"python": "3.11", "ray": "2.60.0", "torch": "2.14", "numpy": "2.4"},
    cores=4,
    memory_bytes=16 * GIB,
    memory_free_bytes=12 * GIB,
    disk_free_bytes={"home": 100 * GIB, "temporary": 50 * GIB, "shared memory": 8 * GIB},
    fingerprints={"train": "f1", "val": "f2"},
    wrote=True,
)
TWIN = replace(GOOD, name="b")


@pytest.fixture
def small(small_recipe: dict[str, Any]) -> recipe.Recipe:
    return recipe.resolve(small_recipe)


def levels(findings: Any) -> list[str]:
    return [finding.level for finding in findings]


def only(findings: Any) -> Finding:
    (finding,) = findings
    return finding


def test_good_nodes_are_ok_and_the_exit_status_says_so(small: recipe.Recipe) -> None:
    findings = [
        *checks.devices([GOOD, TWIN], small),
        *checks.versions([GOOD, TWIN]),
        *checks.clocks({"a": (0.01, 0.001), "b": (-0.2, 0.01)}),
        *checks.storage([GOOD, TWIN], {"a": ["a", "b"], "b": ["a", "b"]}, "/shared"),
        *checks.disks([GOOD, TWIN]),
        *checks.data([GOOD, TWIN], "/images"),
        checks.memory([GOOD, TWIN], small, 10**8, 10**6),
    ]
    assert set(levels(findings)) == {"ok"}
    said: list[str] = []
    assert summary(findings, say=said.append) == 0
    assert said == ["ready"]
    assert summary([*findings, Finding("warn", "x", "y")], say=said.append) == 0
    assert summary([*findings, Finding("fail", "x", "y")], say=said.append) == 1
    assert said[1:] == ["ready, 1 to look at", "1 to fix before a run"]


def test_other_versions_are_found_and_python_and_ray_fail() -> None:
    for name, level in (("ray", "fail"), ("python", "fail"), ("torch", "warn")):
        other = replace(TWIN, versions={**GOOD.versions, name: "0.1"})
        finding = only(checks.versions([GOOD, other]))
        assert finding.level == level
        assert f"{name} is {GOOD.versions[name]} on a and 0.1 on b" in finding.message


def test_clocks_are_judged_beyond_what_the_query_itself_took() -> None:
    assert only(checks.clocks({"a": (0.0, 0.0), "b": (5.0, 0.1)})).level == "warn"
    assert only(checks.clocks({"b": (-3600.0, 0.1)})).level == "fail"
    assert only(checks.clocks({"b": (5.0, 4.5)})).level == "ok"  # the answer took nine seconds


def test_storage_that_is_not_shared_is_found() -> None:
    finding = only(checks.storage([GOOD, TWIN], {"a": ["a"], "b": ["b"]}, "/disk"))
    assert finding.level == "fail"
    assert "a does not see what b wrote to /disk" in finding.message
    readonly = replace(TWIN, wrote=False, problems={"storage": "Read-only file system"})
    finding = only(checks.storage([GOOD, readonly], {"a": ["a"], "b": ["a"]}, "/shared"))
    assert "b cannot write to /shared: Read-only file system" in finding.message


def test_other_images_and_missing_weights_are_found() -> None:
    other = replace(TWIN, fingerprints={"train": "f1", "val": "changed"})
    assert "val: b holds other images than a" in only(checks.data([GOOD, other], "/p")).message
    absent = replace(TWIN, problems={"data": "no images at /p"})
    assert "b: no images" in only(checks.data([GOOD, absent], "/p")).message
    with_weights = replace(GOOD, weights={"/w": "1"})
    assert only(checks.weights([with_weights, GOOD], ["/w"])).level == "fail"
    assert only(checks.weights([with_weights, replace(TWIN, weights={"/w": "2"})], ["/w"])).level == "fail"
    assert only(checks.weights([with_weights, replace(TWIN, weights={"/w": "1"})], ["/w"])).level == "ok"
    assert list(checks.weights([GOOD], [])) == []


def test_too_few_devices_fail_and_training_on_cpus_by_accident_is_said(small: recipe.Recipe) -> None:
    wants = replace(small, cluster=replace(small.cluster, device="cuda", workers=2))
    finding = [f for f in checks.devices([GOOD], wants) if f.level == "fail"]
    assert "asks for 2 GPUs and there are 0" in only(finding).message
    wants = replace(small, cluster=replace(small.cluster, device="auto"))
    assert "warn" in levels(checks.devices([GOOD], wants))
    wants = replace(small, cluster=replace(small.cluster, workers=2, cpus_per_worker=3))
    assert (
        "there is room for 1" in only(f for f in checks.devices([GOOD], wants) if f.level == "fail").message
    )


def test_memory_that_does_not_suffice_fails_with_the_micro_batch_that_would_fit(small: recipe.Recipe) -> None:
    finding = checks.memory([GOOD], small, 10 * GIB, 1 * GIB)
    assert finding.level == "fail"
    assert finding.fix == "take larger devices: it does not fit at any micro_batch"
    finding = checks.memory([GOOD], small, 4 * GIB, 3 * GIB)  # 4 images of 3 GiB
    assert (finding.level, finding.fix) == ("fail", "lower micro_batch to 2")
    gpu = replace(GOOD, gpus=[("H100", 80 * GIB, 79 * GIB)])
    on_gpu = replace(small, cluster=replace(small.cluster, device="cuda"))
    assert checks.memory([gpu], on_gpu, 40 * GIB, 1 * GIB).level == "ok"


def test_full_disks_and_small_shared_memory_are_found() -> None:
    full = replace(
        TWIN, disk_free_bytes={"home": GIB // 2, "temporary": 5 * GIB, "shared memory": 64 * 2**20}
    )
    assert levels(checks.disks([GOOD, full])) == ["fail", "warn", "warn"]


def test_the_network_is_judged_by_what_was_measured() -> None:
    fast = AllReduce(workers=2, backend="gloo", seconds=0.05, latency_seconds=0.001)
    assert fast.gbps == pytest.approx(MESSAGE_BYTES * 8 / 0.049 / 1e9)
    finding = checks.network(fast, None, MESSAGE_BYTES)
    assert finding.level == "ok"
    assert "take 49.0 ms" in finding.message
    assert (checks.network(replace(fast, seconds=5.0), None, None)).level == "warn"
    assert "connection refused" in (checks.network(None, "connection refused", None)).message


def test_a_node_answers_and_leaves_nothing_behind(image_set: Path, tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"x")
    query = NodeQuery(
        storage=str(tmp_path / "store"),
        home=str(tmp_path / "home"),
        token="t",
        data=str(image_set),
        splits=("train", "val"),
        weights=(str(weights), "/none"),
    )
    report = node.report(query, "me")
    assert report.wrote
    assert set(report.fingerprints) == {"train", "val"}
    assert set(report.weights) == {str(weights)}
    assert "/none" in report.problems["weights"]
    assert node.sees(query, ["me"]) == ["me"]
    assert node.sees(query, ["me", "other"]) == ["me"]
    node.clear(query, "me")
    assert not list((tmp_path / "store").iterdir())


def test_this_machines_clock_is_its_own() -> None:
    ((skew, uncertainty),) = _skews(ThisMachine()).values()
    assert abs(skew) <= max(uncertainty, 0.05)


def test_weights_are_found_wherever_a_recipe_names_them(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    losses = small_recipe["task"]["losses"]
    losses["alignment"] = {"kind": "stand_in", "directory": "/teacher"}
    small_recipe["task"]["initial_weights"] = "/dino.safetensors"
    assert recipe.weights_files(recipe.resolve(small_recipe)) == {
        "task.initial_weights": "/dino.safetensors",
        "task.losses.alignment.directory": "/teacher/model.safetensors",
    }
