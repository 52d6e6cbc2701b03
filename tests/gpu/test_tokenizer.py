"""The tokenizer on a GPU: the CPU's numbers, half precision that trains, graphs that change nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import mergevq
from mergevq.errors import InputError
from mergevq.layers import GroupNorm
from mergevq.training.protocol import Training
from mergevq.training.tokenizer import build_training

PRESETS = ("test_g", "test_gr", "test_r")
LOSSES = {
    "adversarial": {"kind": "patch", "discriminator": {"channels": 8, "num_layers": 2}},
    "alignment": {"kind": "self", "prototypes": 16},
}


def visible(tokenizer: mergevq.MergeVQ) -> mergevq.MergeVQ:
    """The same with LayerScales that do not hide attention and merging, as they do at the start."""
    with torch.no_grad():
        for name, parameter in tokenizer.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.7)
    return tokenizer


def random_images(batch: int = 4, size: int = 16) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def build(preset: str = "test_gr") -> Training:
    torch.manual_seed(0)
    training = build_training(LOSSES, mergevq.create(preset), seed=0)
    visible(training.model())
    return training


def batch_of(training: Training, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    side = training.model().config.image_size
    views = training.config.views_needed(side)
    sizes = {"image": side, "student": views.student, "teacher": views.teacher}
    batch = {name: random_images(4, size).to(dtype) for name, size in sizes.items() if size is not None}
    return batch | {"label": torch.tensor([1, -1, 0, 2])}


def step(training: Training, batch: dict[str, Tensor], keep: int) -> dict[str, Tensor]:
    carry: dict[str, Tensor] = {}
    losses: dict[str, Tensor] = {}
    for name, phase in training.phases.items():
        output = phase(batch, carry, keep=keep, step=10**6)
        output.total.backward()
        carry |= output.carry
        losses |= {f"{name}/{term}": value.detach() for term, value in output.losses.items()}
    return losses


@pytest.mark.parametrize("preset", PRESETS)
@torch.inference_mode()
def test_images_of_different_counts_are_encoded_as_on_the_cpu(preset: str) -> None:
    torch.manual_seed(0)
    tokenizer = visible(mergevq.create(preset)).double().eval()
    counts, images = [9, 16, 4, 9], random_images().double()
    encoded = tokenizer.encode(images, counts)
    decoded = tokenizer.decode(encoded)
    tokenizer.cuda()
    there = tokenizer.encode(images.cuda(), counts)
    assert torch.equal(there.indices.cpu(), encoded.indices)
    assert torch.equal(there.source.assignment.cpu(), encoded.source.assignment)
    torch.testing.assert_close(there.kept_tokens.cpu(), encoded.kept_tokens)
    torch.testing.assert_close(tokenizer.decode(there).cpu(), decoded)
    torch.testing.assert_close(
        tokenizer.decode_indices(there.indices).cpu(), tokenizer.cpu().decode_indices(encoded.indices)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_images_of_different_counts_are_finite_in_half_precision(dtype: torch.dtype) -> None:
    tokenizer = visible(mergevq.create("test_gr")).cuda().eval()
    with torch.autocast("cuda", dtype):
        encoded = tokenizer.encode(random_images().cuda(), [9, 16, 4, 9])
        assert tokenizer.decode(encoded).isfinite().all()
    assert encoded.counts.tolist() == [9, 16, 4, 9]
    assert encoded.kept_tokens.isfinite().all()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("keep", [4, 9, 16])
@torch.inference_mode()
def test_indices_sources_and_images_are_the_cpus(preset: str, keep: int) -> None:
    torch.manual_seed(0)
    tokenizer = visible(mergevq.create(preset)).double().eval()
    encoded = tokenizer.encode(random_images().double(), keep)
    decoded = tokenizer.decode(encoded)
    tokenizer.cuda()
    there = tokenizer.encode(random_images().double().cuda(), keep)
    assert torch.equal(there.indices.cpu(), encoded.indices)
    assert torch.equal(there.source.assignment.cpu(), encoded.source.assignment)
    torch.testing.assert_close(tokenizer.decode(there).cpu(), decoded)
    recovered = tokenizer.recovered_source(there.codes)
    assert recovered.assignment.device.type == "cuda"


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_and_gradients_are_the_cpus(preset: str) -> None:
    trainings = [build(preset).double(), build(preset).double().cuda()]
    found = []
    for training, device in zip(trainings, ("cpu", "cuda"), strict=True):
        batch = {name: value.to(device) for name, value in batch_of(training, torch.float64).items()}
        losses = step(training, batch, training.model().grid_tokens // 2)
        gradients = {name: p.grad.cpu() for name, p in training.named_parameters() if p.grad is not None}
        found.append(({name: value.double().cpu() for name, value in losses.items()}, gradients))
    (losses, gradients), (losses_there, gradients_there) = found
    assert losses.keys() == losses_there.keys()
    assert gradients.keys() == gradients_there.keys()
    # The entropies are float32 whatever comes in, and their temperature of 0.01 makes 400 of every 1.
    for name, value in losses.items():
        torch.testing.assert_close(losses_there[name], value, rtol=1e-4, atol=1e-4, msg=name)
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    off = torch.stack([(gradients_there[name] - g).norm() for name, g in gradients.items()]).norm()
    assert off < 1e-3 * norm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_with_losses_in_float32(dtype: torch.dtype) -> None:
    training = build().cuda()
    batch = {name: value.cuda() for name, value in batch_of(training).items()}
    optimizers = [
        torch.optim.AdamW([p for p in phase.parameters() if p.requires_grad], lr=1e-3, fused=True)
        for phase in training.phases.values()
    ]
    history = []
    for _ in range(40):
        with torch.autocast("cuda", dtype=dtype):
            losses = step(training, batch, 9)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        assert {value.dtype for value in losses.values()} == {torch.float32}
        history.append({name: float(value) for name, value in losses.items()})
    assert all(torch.isfinite(torch.tensor(list(values.values()))).all() for values in history)
    assert history[-1]["tokenizer/reconstruction"] < 0.6 * history[0]["tokenizer/reconstruction"]


@pytest.mark.parametrize("preset", PRESETS)
@torch.inference_mode()
def test_compiled_blocks_give_the_same_tokens(preset: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    tokenizer = visible(mergevq.create(preset)).cuda().eval()
    images = random_images(8).cuda()
    eager = {keep: tokenizer.encode(images, keep) for keep in (9, 16)}
    tokenizer.compile()
    for keep, expected in eager.items():
        found = tokenizer.encode(images, keep)
        assert (
            found.indices == expected.indices
        ).float().mean() > 0.99  # rounding may tip a code on the fence
        assert (found.source.assignment == expected.source.assignment).float().mean() > 0.99
        torch.testing.assert_close(tokenizer.decode(found), tokenizer.decode(expected), rtol=1e-2, atol=1e-2)
    torch._dynamo.reset()


def test_a_training_step_waits_for_the_device_nowhere() -> None:
    training = build().cuda()
    batch = {name: value.cuda() for name, value in batch_of(training).items()}
    step(training, batch, 9)  # libraries' handles and tables come with the first one
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(training, batch, 9)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("keep", [4, 16])
def test_encoding_without_a_look_at_values_waits_for_the_device_nowhere(keep: int) -> None:
    tokenizer: Callable = partial(mergevq.create("test_gr").cuda().eval().encode, check_values=False)
    images = random_images().cuda()
    with torch.inference_mode():
        tokenizer(images, keep)
        torch.cuda.set_sync_debug_mode("error")
        try:
            tokenizer(images, keep)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@torch.inference_mode()
def test_encoding_can_be_captured_as_a_graph_and_looks_at_values_outside_of_one() -> None:
    tokenizer = mergevq.create("test_gr").cuda().eval()
    images = random_images().cuda()
    expected = tokenizer.encode(images, 9).indices
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        tokenizer.encode(images, 9)
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        found = tokenizer.encode(images, 9).indices
    graph.replay()
    assert torch.equal(found, expected)
    with pytest.raises(InputError, match="partly NaN"):
        tokenizer.encode(images * torch.nan, 9)
    with pytest.raises(InputError, match="on cpu, the weights on cuda:0"):
        tokenizer.encode(random_images(), 9)


def test_channels_last_changes_nothing_but_the_layout() -> None:
    torch.manual_seed(0)
    tokenizer = visible(mergevq.create("test_gr")).double().cuda().eval()
    images = random_images().double().cuda()
    with torch.inference_mode():
        plain = tokenizer.encode(images, 9).indices
        tokenizer.to(memory_format=torch.channels_last)
        assert any(
            p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
            for m in tokenizer.modules()
            if isinstance(m, nn.Conv2d)
            for p in m.parameters()
            if p.ndim == 4
        )
        assert torch.equal(
            tokenizer.encode(images.contiguous(memory_format=torch.channels_last), 9).indices, plain
        )


@pytest.mark.parametrize("ratio", [3, 30, 100, 300, 1000])  # of the mean to the deviation
def test_group_norm_of_channels_last_memory_is_exact(ratio: int) -> None:
    x = torch.randn(2, 128, 32, 32, generator=torch.Generator().manual_seed(0)) + ratio
    towards = torch.randn(2, 128, 32, 32, generator=torch.Generator().manual_seed(1))
    results = []
    for layout, dtype in (
        (torch.contiguous_format, torch.float64),
        (torch.contiguous_format, torch.float32),
        (torch.channels_last, torch.float32),
    ):
        given = x.cuda().to(dtype).contiguous(memory_format=layout).requires_grad_()
        output = GroupNorm(32, 128).cuda().to(dtype)(given)
        output.backward(towards.cuda().to(dtype).contiguous(memory_format=layout))
        assert given.grad is not None
        results.append((output.detach().double(), given.grad.double()))
    exact, contiguous, channels_last = results
    for index, what in enumerate(("output", "gradient")):
        off = [float((found[index] - exact[index]).abs().max()) for found in (contiguous, channels_last)]
        print(f"mean / deviation {ratio}, {what}: contiguous {off[0]:.1e}, channels-last {off[1]:.1e}")
        assert off[1] < 1e-3


@pytest.mark.parametrize("value", [1.0, -1.0, 0.25])
@torch.inference_mode()
def test_codes_of_a_plain_image_do_not_depend_on_the_layout(value: float) -> None:
    torch.manual_seed(0)
    smaller = {"encoder": {"depth": 2, "res_blocks": 2}, "decoder": {"depth": 1, "res_blocks": 1}}
    tokenizer = mergevq.create("gr_128_d32", smaller).double().cuda().eval()
    image = torch.full((1, 3, 128, 128), value, device="cuda")
    exact = tokenizer.encode(image.double(), 36)
    tokenizer.float()
    contiguous = tokenizer.encode(image, 36)
    tokenizer.to(memory_format=torch.channels_last)
    found = tokenizer.encode(image.contiguous(memory_format=torch.channels_last), 36)
    for name, encoded in (("contiguous", contiguous), ("channels-last", found)):
        off = float((encoded.latents.double() - exact.latents).abs().max())
        other = int((encoded.indices != exact.indices).sum())
        print(f"plain {value}, {name}: latents off by {off:.1e}, {other} of 36 codes other than float64's")
        assert off < 1e-3
    certain = contiguous.latents.abs() > 1e-3  # rounding may tip a code on the fence
    assert torch.equal(found.codes[certain], contiguous.codes[certain])
