"""The public face: encode, decode, recover, at any kept count, with work that falls as fewer are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import mergevq
from mergevq.errors import InputError


@pytest.fixture
def tokenizer() -> mergevq.MergeVQ:
    torch.manual_seed(0)
    tokenizer = mergevq.create("test_gr").eval()
    with torch.no_grad():  # at its start LayerScale hides attention and merging
        for name, parameter in tokenizer.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.7)
    return tokenizer


def random_images(batch: int = 3, size: int = 16) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("keep", [4, 5, 9, 13, 16])
@torch.inference_mode()
def test_exactly_as_many_tokens_are_kept_as_asked(keep: int, tokenizer: mergevq.MergeVQ) -> None:
    encoded = tokenizer.encode(random_images(), keep)
    assert encoded.indices.shape == (3, keep)
    assert encoded.indices.dtype == torch.int64
    assert encoded.codes.shape == (3, keep, 6)
    assert set(encoded.codes.unique().tolist()) == {-1.0, 1.0}
    assert encoded.summary.shape == (3, 32)
    assert encoded.kept_tokens.shape == (3, keep, 32)
    assert torch.equal(encoded.source.size.sum(1), torch.full((3,), 16.0))
    assert torch.equal(encoded.source.matrix().sum(2), encoded.source.size)
    assert (encoded.source.size > 0).all()
    for row in encoded.source.assignment:
        first = [int((row == slot).nonzero()[0]) for slot in range(keep)]
        assert first == sorted(first), "kept tokens are ordered by their first raster cell"
    assert tokenizer.decode(encoded).shape == (3, 3, 16, 16)


@torch.inference_mode()
def test_the_configured_count_is_the_default(tokenizer: mergevq.MergeVQ) -> None:
    assert tokenizer.encode(random_images()).indices.shape == (3, tokenizer.config.keep)


@torch.inference_mode()
def test_with_all_tokens_kept_the_source_is_the_identity(tokenizer: mergevq.MergeVQ) -> None:
    source = tokenizer.encode(random_images(), 16).source
    assert torch.equal(source.assignment, torch.arange(16).expand(3, -1))
    assert (source.size == 1).all()


@torch.inference_mode()
def test_indices_with_their_source_decode_to_the_same_image(tokenizer: mergevq.MergeVQ) -> None:
    encoded = tokenizer.encode(random_images(), 9)
    torch.testing.assert_close(
        tokenizer.decode_indices(encoded.indices, encoded.source), tokenizer.decode(encoded)
    )


@torch.inference_mode()
def test_without_a_source_recovery_predicts_a_valid_one(tokenizer: mergevq.MergeVQ) -> None:
    encoded = tokenizer.encode(random_images(), 9)
    source = tokenizer.recovered_source(encoded.codes)
    assert source.assignment.shape == (3, 16)
    assert int(source.assignment.max()) < 9
    assert torch.equal(source.size.sum(1), torch.full((3,), 16.0))
    wanted = tokenizer.decode_codes(encoded.codes, source)
    torch.testing.assert_close(tokenizer.decode_indices(encoded.indices), wanted)


@torch.inference_mode()
def test_a_image_is_encoded_alike_alone_and_in_a_batch(tokenizer: mergevq.MergeVQ) -> None:
    together, alone = tokenizer.encode(random_images(), 9), tokenizer.encode(random_images()[1:2], 9)
    assert torch.equal(together.source.assignment[1:2], alone.source.assignment)
    torch.testing.assert_close(together.latents[1:2], alone.latents, atol=1e-5, rtol=1e-5)


def test_encoding_leaves_nothing_on_the_modules(tokenizer: mergevq.MergeVQ) -> None:
    before = {name: set(vars(module)) for name, module in tokenizer.named_modules()}
    first = tokenizer.encode(random_images(), 9)
    tokenizer.encode(random_images(2), 4)
    torch.testing.assert_close(
        tokenizer.decode(first), tokenizer.decode(tokenizer.encode(random_images(), 9))
    )
    assert before == {name: set(vars(module)) for name, module in tokenizer.named_modules()}


def flops(tokenizer: mergevq.MergeVQ, keep: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tokenizer.encoder(random_images(1, 64), keep)
    return counter.get_total_flops()


def test_counted_work_falls_with_the_kept_count() -> None:
    tokenizer = mergevq.create("test_r", image_size=64, **{"encoder.depth": 6})
    full, half, quarter = (flops(tokenizer, keep) for keep in (256, 128, 64))
    assert full > half > quarter
    assert quarter < 0.65 * full, "merged tokens must not be computed and masked"


@pytest.mark.parametrize("name", ["test_gr", "test_r"])
@torch.inference_mode()
def test_another_resolution_is_encoded_with_a_schedule_of_its_own(name: str) -> None:
    tokenizer = mergevq.create(name)
    summary, head = tokenizer.encode_summary(random_images(2, 24), 20)
    assert summary.shape == (2, 32)
    assert head.shape == (2, 16)
    assert tokenizer.encode(random_images(2, 24), 20).source.assignment.shape == (2, 36)


@torch.inference_mode()
def test_variant_r_knows_where_a_patch_lies() -> None:
    torch.manual_seed(0)
    shuffled = random_images(1).unfold(2, 4, 4).unfold(3, 4, 4).flatten(2, 3)[:, :, torch.randperm(16)]
    shuffled = shuffled.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 16, 16)
    for positions, differs in (("sincos", True), ("none", False)):
        tokenizer = mergevq.create("test_r", **{"encoder.positions": positions})
        for parameter_name, parameter in tokenizer.named_parameters():
            if parameter_name.endswith("gamma"):
                parameter.fill_(1.0)
        straight, permuted = (tokenizer.encode(x, 16).summary for x in (random_images(1), shuffled))
        assert bool((straight - permuted).abs().max() > 1e-4) == differs, positions


def test_gradients_of_recovery_reach_the_encoder_unless_detached(tokenizer: mergevq.MergeVQ) -> None:
    for detach in (False, True):
        tokenizer.zero_grad(set_to_none=True)
        tokenizer(random_images(), 9, detach_recovery=detach).recovery_logits.square().mean().backward()
        reached = tokenizer.encoder.stem.conv_in.weight.grad
        assert (reached is None or not reached.any()) == detach
        assert tokenizer.recovery.queries.grad.any()


def test_bfloat16_autocast_keeps_sizes_exact(tokenizer: mergevq.MergeVQ) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        result = tokenizer(random_images(), 5)
    assert result.encoded.source.size.dtype == torch.float32
    assert torch.equal(result.encoded.source.size.sum(1), torch.full((3,), 16.0))
    losses = tokenizer.quantizer.losses(result.encoded.latents)
    assert all(value.dtype == torch.float32 for value in losses.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.encode(random_images(1, 15), 9), r"15 x 15 do not divide into cells of 4 pixels"),
        (lambda t: t.encode(random_images(1), 3), r"cannot keep 3 of 16 tokens.*4 to 16"),
        (lambda t: t.encode(random_images(1), 17), r"cannot keep 17 of 16 tokens"),
        (lambda t: t.decode_indices(torch.full((1, 9), 64)), r"indices must lie in 0\.\.63"),
        (lambda t: t.decode_indices(torch.full((1, 9), -2)), r"indices must lie in 0\.\.63"),
    ],
)
def test_wrong_values_are_explained(call: object, message: str, tokenizer: mergevq.MergeVQ) -> None:
    with pytest.raises(InputError, match=message):
        call(tokenizer)  # type: ignore[operator]


def test_a_saved_tokenizer_is_read_back_exactly(tokenizer: mergevq.MergeVQ, tmp_path: Path) -> None:
    mergevq.save(tokenizer, tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "model.safetensors"}
    again = mergevq.load(tmp_path / "saved")
    assert again.config == tokenizer.config
    assert not again.training
    with torch.inference_mode():
        assert torch.equal(
            again.encode(random_images(), 9).indices, tokenizer.encode(random_images(), 9).indices
        )


def test_damaged_and_missing_files_are_named(tokenizer: mergevq.MergeVQ, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer in"):
        mergevq.load(tmp_path)
    mergevq.save(tokenizer, tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        mergevq.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        mergevq.load(tmp_path)
    mergevq.save(mergevq.create("test_g"), tmp_path / "g")
    (tmp_path / "g" / "config.json").write_text((tmp_path / "config.json").read_text())
    with pytest.raises(InputError, match="does not belong to its config"):
        mergevq.load(tmp_path / "g")
    (tmp_path / "g" / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"describes 'None', not a 'mergevq tokenizer 1'"):
        mergevq.load(tmp_path / "g")


@pytest.mark.slow
def test_compiled_blocks_compute_what_eager_ones_do_at_every_count_of_a_menu() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        tokenizer = mergevq.create("test_gr")
        if compiled:
            tokenizer.compile(backend="aot_eager")
        values = []
        for keep in (4, 9, 16):
            tokenizer.zero_grad()
            result = tokenizer(images, keep)
            (result.reconstruction.square().mean() + result.encoded.latents.square().mean()).backward()
            values += [
                result.reconstruction.detach(),
                tokenizer.encoder.blocks[0].attention.qkv.weight.grad.clone(),
            ]
        results.append(values)
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager, atol=1e-5, rtol=1e-4)
