"""Weight selection from a larger vision transformer."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import mergevq
from mergevq.errors import InputError
from mergevq.initialisation import select_weights, selected


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        num_classes=0,
        depth=3,
        embed_dim=96,
        num_heads=4,
        init_values=1.0,
        img_size=32,
    )
    path = tmp_path_factory.mktemp("vit") / "vit.safetensors"
    save_file({name: torch.randn_like(value) for name, value in network.state_dict().items()}, path)
    return path


def test_blocks_and_summary_token_come_from_evenly_spread_elements(weights: Path) -> None:
    from safetensors.torch import load_file

    source = load_file(weights)
    tokenizer = mergevq.create("test_gr")
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    count = select_weights(tokenizer, str(weights))
    after = tokenizer.state_dict()
    assert torch.equal(after["encoder.summary_token"], source["cls_token"][..., ::3])
    assert torch.equal(
        after["encoder.blocks.1.attention.qkv.weight"], source["blocks.1.attn.qkv.weight"][::3, ::3]
    )
    assert torch.equal(after["encoder.blocks.0.scale2.gamma"], source["blocks.0.ls2.gamma"][::3])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == count == 2 * 14 + 1
    assert all(name.startswith("encoder.blocks") or name == "encoder.summary_token" for name in changed)


def test_sizes_that_do_not_divide_take_a_rounded_spacing() -> None:
    source = torch.arange(768.0)
    assert selected(source, torch.Size([512]))[:4].tolist() == [0, 2, 3, 5]
    assert selected(source, torch.Size([384])).tolist() == list(range(0, 768, 2))


def test_a_network_that_is_too_small_is_refused(weights: Path) -> None:
    with pytest.raises(InputError, match=r"lacks blocks\.10.*at least 12 blocks"):
        select_weights(mergevq.create("test_gr", {"encoder": {"depth": 12}}), str(weights))
    wide = {"width": 128, "channels": 128}
    with pytest.raises(InputError, match=r"too small for the encoder's"):
        select_weights(mergevq.create("test_gr", {"encoder": wide}), str(weights))


def test_missing_files_and_wrong_checksums_are_named(weights: Path) -> None:
    with pytest.raises(InputError, match=r"no weights file '/nowhere"):
        select_weights(mergevq.create("test_gr"), "/nowhere.safetensors")
    with pytest.raises(InputError, match="SHA-256"):
        select_weights(mergevq.create("test_gr"), str(weights), sha256="0" * 64)
