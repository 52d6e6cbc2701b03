"""Generators on a GPU: greedy decoding is the forward, steps never wait, compiled steps draw the same codes."""

from __future__ import annotations

import pytest
import torch

from mergevq import cuda_graphs
from mergevq.config import merged, to_tree
from mergevq.generation import (
    Generated,
    Generator,
    GuidanceConfig,
    SamplingConfig,
    build_generator,
    cache_layout,
    generator_preset,
    parse_generator,
    sample,
)
from random_generators import random_generator

KINDS = ("raster", "mergear", "random_order")
LABELS = torch.tensor([0, 1, 2, -1])


def generate(generator: Generator, device: str = "cuda", **options: object) -> Generated:
    if generator.config.kind != "raster":
        options = {"keep": 9, **options}
    return sample(generator, LABELS.to(device), sample_ids=torch.arange(4), seed=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_codes_as_on_the_cpu_in_float64(kind: str) -> None:
    generator = random_generator(kind)
    options = {"guidance": GuidanceConfig(scale=2.0), "sampling": SamplingConfig(top_p=0.95)}
    here = generate(generator, "cpu", **options)
    there = generate(generator.cuda(), **options)
    assert torch.equal(there.indices.cpu(), here.indices)


@pytest.mark.parametrize("kind", ["raster", "mergear"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_greedy_decoding_equals_the_teacher_forced_forward(kind: str, dtype: torch.dtype) -> None:
    generator = random_generator(kind).to("cuda", dtype)
    made = generate(generator, sampling=SamplingConfig(temperature=0.0)).indices
    with torch.inference_mode():
        prediction = generator(made, None, LABELS.cuda(), None if kind == "raster" else 9)
    best = torch.stack([logits.argmax(-1) for logits in prediction.logits], -1)
    assert torch.equal(generator.tokens.join(best), made)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_wait_for_the_device_nowhere(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        cache_layout, "POLL_EVERY", {"cuda": 10**9}
    )  # MergeAR's looks at how full its cache is
    options = {"guidance": GuidanceConfig(scale=2.0), "sampling": SamplingConfig(top_k=5, top_p=0.9)}
    waits = []
    for cells in (16, 64):
        changed = {"grid_tokens": cells} | ({} if kind == "raster" else {"keeps": [9]})
        tree = merged(to_tree(generator_preset(f"test_{kind}")), changed)
        generator = build_generator(parse_generator(tree)).eval().cuda()
        generate(generator, **options)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            generate(generator, **options)
        waits.append(
            sum(event.count for event in profile.key_averages() if event.key == "aten::_local_scalar_dense")
        )
    assert waits[0] == waits[1], f"a step hands a value to the host: {waits}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [{}, {"schedule": "linear"}, {"interval": (0.3, 0.7)}])
def test_recorded_steps_draw_the_same_codes(
    kind: str, guidance: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = random_generator(kind).float().cuda()
    options = {
        "guidance": GuidanceConfig(scale=2.0 if guidance else 1.0, **guidance),  # type: ignore[arg-type]
        "sampling": SamplingConfig(top_k=5, top_p=0.9),
    }
    recordings: list[cuda_graphs.Recording] = []
    record = cuda_graphs._recorded

    def counted(*arguments: object) -> cuda_graphs.Recording:
        recordings.append(record(*arguments))  # type: ignore[arg-type]
        return recordings[-1]

    monkeypatch.setattr(cuda_graphs, "_recorded", counted)
    recorded = generate(generator, **options)
    assert recordings
    monkeypatch.setattr(
        cuda_graphs.CudaGraphs, "__call__", lambda _, key, function, *arguments: function(*arguments)
    )
    assert torch.equal(generate(generator, **options).indices, recorded.indices)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_steps_draw_the_same_codes(kind: str) -> None:
    torch._dynamo.reset()
    generator = random_generator(kind).float().cuda()
    greedy = {"sampling": SamplingConfig(temperature=0.0), "guidance": GuidanceConfig(scale=2.0)}
    expected = generate(generator, **greedy).indices
    generator.compile(fullgraph=True)
    assert (generate(generator, **greedy).indices == expected).float().mean() > 0.95
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_generates_codes_in_range(kind: str) -> None:
    generator = random_generator(kind).float().cuda()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        made = generate(generator, guidance=GuidanceConfig(scale=2.0)).indices
    assert int(made.min()) >= 0
    assert int(made.max()) < 2**6
