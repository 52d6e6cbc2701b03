"""Counted work: what a pass computes, what a maker states, and what is logged of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mergevq_platform import loop, meter, recorded_passes
from mergevq_platform.distributed.local import LocalHost
from mergevq_platform.flops import FlopCount, stated_peak
from mergevq_platform.recipe import resolve


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bfloat16", 989),
        ("NVIDIA H100 80GB HBM3", "float32", 495),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H20", "float16", 148),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A10G", "bfloat16", 70),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA RTX A4000", "bfloat16", None),
        ("2 CPU threads", "bfloat16", None),
    ],
)
def test_makers_state_a_rate_for_their_devices(name: str, precision: str, tflops: float | None) -> None:
    assert stated_peak(name, precision) == (None if tflops is None else tflops * 1e12)


def test_a_pass_is_counted_once_for_each_kept_count() -> None:
    count = FlopCount(torch.device("cuda"))
    weight = torch.randn(8, 4, requires_grad=True)
    for keep in (4, 9):
        assert count.missing(keep)
        with count.counting(keep, 2):
            (torch.randn(6, 8) @ weight).sum().backward()
        assert not count.missing(keep)
    # Two products of 6 x 8 x 4, the second for the weight's gradient.
    assert count.per_image == {4: 2 * 2 * 6 * 8 * 4 / 2, 9: 2 * 2 * 6 * 8 * 4 / 2}
    assert not FlopCount(torch.device("cpu")).missing(4)


def test_training_logs_its_work_and_the_share_of_what_the_maker_states(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        recorded_passes, "FlopCount", lambda device: FlopCount(torch.device("cuda", 0))
    )  # counted on a CPU, too
    monkeypatch.setattr(meter, "stated_peak", lambda name, precision: 1e12)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a device")
    one_count = small_recipe["task"] | {"keep": {"kind": "list", "counts": [9]}}
    host = LocalHost(tmp_path)
    loop.train(resolve(small_recipe | {"steps": 4, "task": one_count}), loop.Worker(), host)
    for _, measured in host.system:
        work = measured["system/tflops_per_second"]
        assert measured["system/peak_share"] == pytest.approx(work)
        per_image = work * 1e12 / measured["system/images_per_second"]
        assert per_image == pytest.approx(
            host.system[0][1]["system/tflops_per_second"]
            * 1e12
            / host.system[0][1]["system/images_per_second"]
        )
        assert 1e6 < per_image < 1e9
