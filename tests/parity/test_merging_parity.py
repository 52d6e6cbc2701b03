"""Against published bipartite soft matching: the same groups and the same size-weighted means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mergevq import merging

REFERENCE = Path(__file__).parent / "reference"
CASES = json.loads((REFERENCE / "merging.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"N{case['N']}-r{case['r']}")
def test_merging_equals_the_published_one(case: dict) -> None:
    data = load_file(REFERENCE / "merging.safetensors")
    metric, x, size, wanted, wanted_size = (
        data[f"{case['id']}.{name}"] for name in ("metric", "x", "size", "unmerged", "unmerged_size")
    )
    chosen = merging.match(metric, case["r"], protect_first=case["class_token"])
    merged, merged_size = merging.merge(chosen, x, size[..., 0])
    slots = merging.slots(chosen, case["N"])

    assert merged.shape == (case["B"], case["tokens_out"], case["C"])
    torch.testing.assert_close(merging.unmerge(merged, slots), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged_size.gather(1, slots), wanted_size[..., 0], atol=1e-5, rtol=1e-5)
    if f"{case['id']}.same_group" in data:
        together = slots[:, :, None] == slots[:, None]
        assert torch.equal(together, data[f"{case['id']}.same_group"].bool())
