"""Files of weights as people have them: names of wrappers, downloads that are none, the wrong variant."""

from __future__ import annotations

import argparse
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergevq
from mergevq.errors import InputError
from mergevq.losses.perceptual import LpipsPerceptualConfig, perceptual_distance
from mergevq.metrics import InceptionFeaturesConfig, TimmFeaturesConfig, extractor
from mergevq.official import read_state
from mergevq.pretrained import TimmNetworkConfig, timm_network
from mergevq.weights_file import read_weights, without_wrappers

STATE = {
    "cls_token": torch.ones(1, 1, 4),
    "blocks.0.attn.qkv.weight": torch.arange(12.0).view(3, 4),
    "norm.bias": torch.zeros(4),
}
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "_fsdp_wrapped_module.",
    "_fsdp_wrapped_module._orig_mod.",
    "model.",
    "backbone.",
    "teacher.backbone.",
    "ema.model.",
    "_checkpoint_wrapped_module.",
)
NESTS: tuple[Callable[[dict], dict], ...] = (
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model": {"state_dict": state}, "optimizer": {"step": 1}},
    lambda state: {"teacher": state, "student": state},
    lambda state: {"ema": state, "epoch": 2},
)


def read_of_key(path: Path) -> dict[str, Tensor]:
    return read_weights(path, key="x")


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)


@pytest.mark.parametrize("prefix", WRAPPERS)
def test_names_that_wrappers_gave_are_read_as_those_of_the_network(tmp_path: Path, prefix: str) -> None:
    wrapped = {prefix + name: value for name, value in STATE.items()}
    save_file(wrapped, tmp_path / "w.safetensors")
    assert same(read_weights(tmp_path / "w.safetensors", key="x"), STATE)
    assert same(read_state(tmp_path / "w.safetensors"), STATE)
    for nest in NESTS:
        torch.save(nest(wrapped), tmp_path / "w.pth")
        assert same(read_weights(tmp_path / "w.pth", key="x"), STATE)
        assert same(read_state(tmp_path / "w.pth"), STATE)


def test_wrappers_of_parts_and_the_counter_of_an_average_are_taken_off() -> None:
    wrapped = {
        "n_averaged": torch.tensor(3),
        "module.cls_token": STATE["cls_token"],
        "module.blocks.0._checkpoint_wrapped_module.attn._fsdp_wrapped_module.qkv.weight": STATE[
            "blocks.0.attn.qkv.weight"
        ],
        "module._orig_mod.norm.bias": STATE["norm.bias"],
    }
    assert same(without_wrappers(wrapped), STATE)


def test_only_what_all_names_share_is_a_wrapper_around_them() -> None:
    for prefix in ("features.", "encoder.", "body."):  # networks of timm's have all their names below these
        state = {prefix + name: value for name, value in STATE.items()}
        assert same(without_wrappers(state), state)
    mixed = STATE | {"backbone.norm.weight": torch.ones(4)}
    assert same(without_wrappers(mixed), mixed)


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    save_file(STATE | {"norm._orig_mod.bias": torch.ones(4)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="two tensors of one name"):
        read_weights(tmp_path / "w.safetensors", key="x")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 346378731\n"
PAGE = "\ufeff\n<!-- x -->\n<html><head><title>Sign in</title></head></html>\n"
XML = "<?xml version='1.0'?>\n<Error><Code>NoSuchKey</Code><Message>The key does not exist</Message></Error>"
NO_WEIGHTS = {
    "pointer": (POINTER.encode(), "is a Git LFS pointer, not the file: fetch it with 'git lfs pull'"),
    "page": (PAGE.encode(), "is a web page, not the file"),
    "doctype": (b"<!DOCTYPE html>\n<p>Gone" + b" " * 9000, "is a web page, not the file"),
    "latin": ("<html>gesperrt: größe</html>".encode("latin-1"), "is a web page, not the file"),
    "xml": (XML.encode(), r"is XML, such as a store's error \(NoSuchKey: The key does not exist\)"),
    "json": (json.dumps({"error": "Repository not found"}).encode(), r"is JSON, not weights .*not found"),
    "text": ("Zugriff verweigert für alle\n".encode(), "is text, not a safetensors file"),
    "shards": (
        json.dumps({"metadata": {"total_size": 9}, "weight_map": {"a": "model-00001-of-00002.bin"}}).encode(),
        "is the index of weights in several files",
    ),
    "empty": (b"", "is empty: fetch it again"),
    "blank": (b"\n \n", "is text, not a safetensors file"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0", "is compressed with gzip: unpack it"),
    "noise": (bytes(range(128, 256)) * 9, "is damaged, or not a safetensors file or a PyTorch state dict"),
    "cut": (b"\x10\0\0\0\0\0\0\0{" + b'"a":', "is a damaged safetensors file"),
}


@pytest.mark.parametrize("ending", ["safetensors", "pth", "bin"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_what_a_download_left_instead_of_weights_is_said_in_one_line(
    tmp_path: Path, kind: str, ending: str
) -> None:
    content, said = NO_WEIGHTS[kind]
    path = tmp_path / f"w.{ending}"
    path.write_bytes(content)
    for read in (read_of_key, read_state):
        with pytest.raises(InputError, match=said) as caught:
            read(path)
        message = str(caught.value)
        assert str(path) in message
        assert "\n" not in message
        assert "weights_only" not in message


def test_a_pointer_is_named_before_its_checksum_is(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_text(POINTER)
    with pytest.raises(InputError, match="Git LFS pointer"):
        read_weights(tmp_path / "w.pth", key="x", sha256="0" * 64)


def test_a_pointer_in_the_place_of_a_tokenizers_weights_is_named(tmp_path: Path) -> None:
    mergevq.save(mergevq.create("test_gr"), tmp_path)
    (tmp_path / "model.safetensors").write_text(POINTER)
    with pytest.raises(InputError, match=r"model\.safetensors is a Git LFS pointer"):
        mergevq.load(tmp_path)


def test_archives_that_are_no_checkpoints_say_what_they_hold(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("weights/vit.safetensors", b"x")
    with pytest.raises(InputError, match=r"is a zip archive and no checkpoint; it has weights/vit\.safetens"):
        read_weights(tmp_path / "w.pth", key="x")
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        archive.add(tmp_path / "w.pth", "vit.pth")
    with pytest.raises(InputError, match="is a tar archive: unpack it"):
        read_weights(tmp_path / "w.tar", key="x")
    torch.save(STATE, tmp_path / "w.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:-40])
    with pytest.raises(InputError, match="is cut off or damaged: fetch it again"):
        read_weights(tmp_path / "cut.pth", key="x")
    with pytest.raises(InputError, match="is a directory: name the file in it"):
        read_weights(tmp_path, key="x")


@pytest.mark.parametrize("name", ["named.bin", "named.pth", "named"])
def test_the_first_bytes_decide_what_a_file_is(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert same(read_weights(tmp_path / name, key="x"), STATE)
    assert same(read_state(tmp_path / name), STATE)
    torch.save(STATE, tmp_path / "torch.safetensors", _use_new_zipfile_serialization=name == "named")
    assert same(read_weights(tmp_path / "torch.safetensors", key="x"), STATE)


def test_more_than_tensors_is_named_and_no_message_says_how_to_run_it(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(rate=1)}, tmp_path / "w.pth")
    for read in (read_of_key, read_state):
        with pytest.raises(
            InputError, match=r"it holds 'argparse\.Namespace', which could run code"
        ) as caught:
            read(tmp_path / "w.pth")
        assert "weights_only" not in str(caught.value)
        assert "safe_globals" not in str(caught.value)


def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "student": STATE}, tmp_path / "w.pth")
    with pytest.raises(
        InputError,
        match=r"does not hold a state dict .*it holds epoch, student \(2 in all\).*give a file of one",
    ):
        read_weights(tmp_path / "w.pth", key="x")


@pytest.mark.parametrize(
    "nest", ["state_dict_ema", "model_ema", "model_state_dict", "module", "net", "params_ema"]
)
def test_state_dicts_are_found_where_training_scripts_keep_them(tmp_path: Path, nest: str) -> None:
    torch.save({"epoch": 3, nest: STATE, "optimizer": {"step": 1}}, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth", key="x"), STATE)


@pytest.mark.parametrize(
    ("trained", "averaged"),
    [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("params", "params_ema")],
)
def test_neither_of_trained_and_averaged_weights_is_taken_unasked(
    tmp_path: Path, trained: str, averaged: str
) -> None:
    other = {name: value + 1 for name, value in STATE.items()}
    torch.save({"epoch": 3, trained: other, averaged: STATE}, tmp_path / "w.pth")
    for read in (read_of_key, read_state):
        with pytest.raises(
            InputError, match=f"'{trained}' and their average in '{averaged}': give a file of"
        ):
            read(tmp_path / "w.pth")


def test_every_reader_takes_wrapped_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vit = timm.create_model("test_vit").state_dict()
    save_file({f"teacher.backbone.{name}": value for name, value in vit.items()}, tmp_path / "vit.bin")
    network = extractor(
        TimmFeaturesConfig(name="test_vit", weights=str(tmp_path / "vit.bin"), image_size=160)
    )
    assert torch.equal(network.network.state_dict()["norm.bias"], vit["norm.bias"])

    from mergevq.losses.perceptual import _VGG16_WIDTHS, _vgg16_features
    from mergevq.metrics.inception import Inception

    torch.save({"model": {f"module.{k}": v for k, v in Inception().state_dict().items()}}, tmp_path / "i.pth")
    extractor(InceptionFeaturesConfig(weights=str(tmp_path / "i.pth")))
    vgg = {f"module.features.{name}": value for name, value in _vgg16_features().state_dict().items()}
    heads = {
        f"_orig_mod.lin{i}.model.1.weight": torch.ones(1, width, 1, 1)
        for i, width in enumerate(_VGG16_WIDTHS)
    }
    save_file(vgg | {"module.classifier.0.bias": torch.zeros(1)}, tmp_path / "vgg.pth")
    save_file(heads, tmp_path / "heads.pth")
    term = LpipsPerceptualConfig(backbone=str(tmp_path / "vgg.pth"), heads=str(tmp_path / "heads.pth"))
    perceptual_distance(term, image_size=32)


def test_lpips_names_what_it_found_where_it_lacks_something(tmp_path: Path) -> None:
    save_file({"net.slice1.0.weight": torch.zeros(1)}, tmp_path / "w.pth")
    term = LpipsPerceptualConfig(backbone=str(tmp_path / "w.pth"), heads=str(tmp_path / "w.pth"))
    with pytest.raises(
        InputError, match=r"lacks features\.0\.weight, .*; it has net\.slice1\.0\.weight \(1 in"
    ):
        perceptual_distance(term, image_size=32)


DINOV2 = "vit_small_patch14_dinov2"


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    directory = tmp_path_factory.mktemp("variants")

    def file(name: str, **changes: object) -> str:
        path = directory / f"{name}{len(list(directory.iterdir()))}.safetensors"
        torch.manual_seed(0)
        save_file(timm.create_model(name, num_classes=0, **changes).state_dict(), path)
        return str(path)

    return file


def refusal(weights: str, model: str, size: int = 28) -> str:
    with pytest.raises(InputError) as caught:
        timm_network(TimmNetworkConfig(model=model, weights=weights), key="alignment", image_size=size)
    return str(caught.value)


def test_the_register_variant_is_named(variants: Callable[..., str]) -> None:
    said = refusal(variants("vit_small_patch14_reg4_dinov2", depth=12), DINOV2)
    assert "registers 4, not 0: it looks like vit_small_patch14_reg4_dinov2: name that model" in said
    said = refusal(variants(DINOV2), "vit_small_patch14_reg4_dinov2")
    assert "registers 0, not 4: it looks like vit_small_patch14_dinov2: name that model" in said


def test_the_register_variant_in_the_layout_of_its_release_is_named(
    variants: Callable[..., str], tmp_path: Path
) -> None:
    state = load_file(variants("vit_small_patch14_reg4_dinov2"))
    state["register_tokens"] = state.pop("reg_token")
    state["mask_token"] = torch.zeros(1, 384)
    state["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], 1)
    save_file(state, tmp_path / "release.pth")
    assert "looks like vit_small_patch14_reg4_dinov2" in refusal(str(tmp_path / "release.pth"), DINOV2)


def test_another_patch_size_width_and_depth_are_named_and_not_resampled(variants: Callable[..., str]) -> None:
    said = refusal(variants("vit_tiny_patch16_224", img_size=32), "vit_small_patch32_224", 32)
    assert "width 192, not 384" in said
    assert "patch size 16, not 32" in said
    assert "looks like vit_tiny_patch16_224: name that model" in said
    said = refusal(variants("test_vit", depth=3), "test_vit", 160)
    assert "depth 3, not 6: name its own model" in said


def test_a_fitting_file_stays_what_it_was(variants: Callable[..., str]) -> None:
    path = variants(DINOV2, img_size=28)
    built = timm_network(TimmNetworkConfig(model=DINOV2, weights=path), key="alignment", image_size=28)
    assert same(built.model.state_dict(), load_file(path))
    assert built.positions is None
