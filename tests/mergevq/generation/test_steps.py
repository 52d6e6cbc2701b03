"""What a decode step must not do: wait for the device, or change its shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mergevq.generation import GuidanceConfig, SamplingConfig, cache_layout, packed_linear

KINDS = ("raster", "mergear", "random_order")
LABELS = torch.tensor([0, 1, 2, -1])


class Looks(TorchFunctionMode):
    """Counts the calls that hand a value to the host."""

    names = frozenset(
        {"item", "tolist", "__int__", "__float__", "__bool__", "__index__", "nonzero", "unique", "equal"}
    )
    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in self.names
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [{}, {"scale": 2.0, "schedule": "linear"}])
def test_no_step_hands_a_value_to_the_host(
    random_generator: Callable, generate: Callable, kind: str, guidance: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_layout, "POLL_EVERY", {"cpu": 4})
    counts = {}
    for grid_tokens, keep in ((16, 9), (64, 36)):
        generator = random_generator(
            kind, {"grid_tokens": grid_tokens} | ({} if kind == "raster" else {"keeps": [keep]})
        )
        options = {} if kind == "raster" else {"keep": keep}
        sampling = SamplingConfig(top_k=5, top_p=0.9)
        with Looks() as looks:
            generate(generator, LABELS, guidance=GuidanceConfig(**guidance), sampling=sampling, **options)
        counts[grid_tokens] = looks.count
    # Four times the cells: MergeAR's looks at how full its cache is, one in four cells here, and nothing else.
    assert counts[64] - counts[16] == ((63 + 3) // 4 - (15 + 3) // 4 if kind == "mergear" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_packed_for_a_cpu_give_the_same_codes_and_are_unpacked_again(
    random_generator: Callable, generate: Callable, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random_generator(kind).float()
    calls = []
    packed = torch.ops.mkldnn._linear_pointwise
    with monkeypatch.context() as patch:
        patch.setattr(
            torch.ops.mkldnn, "_linear_pointwise", lambda *args: (calls.append(1), packed(*args))[1]
        )
        made = generate(generator, LABELS).indices
    assert calls, "float32 on a CPU is packed"
    assert all(getattr(layer, "packed", None) is None for layer in generator.modules())
    monkeypatch.setattr(packed_linear, "_packable", lambda weight: False)
    assert torch.equal(generate(generator, LABELS).indices, made)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate(generator, LABELS).indices.shape == made.shape


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mergear", "random_order"])
def test_compiled_blocks_are_whole_graphs_of_few_shapes_with_the_same_codes(
    random_generator: Callable, generate: Callable, kind: str
) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    generator = random_generator(kind)
    options = {"guidance": GuidanceConfig(scale=2.0)} | ({"steps": 5} if kind == "random_order" else {})
    expected = generate(generator, LABELS, **options).indices
    generator.compile(backend=backend, fullgraph=True)
    assert torch.equal(generate(generator, LABELS, **options).indices, expected)
    # The prefix or first step, a later step, and the intra-cell transformer's two, each for at most two shapes.
    assert 3 <= len(graphs) <= 8
    torch._dynamo.reset()
