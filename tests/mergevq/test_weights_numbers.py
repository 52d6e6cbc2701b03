"""What the tensors of a file hold, beside names and shapes: numbers that a network can compute with, or a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergevq
from mergevq.errors import InputError
from mergevq.initialisation import select_weights
from mergevq.pretrained import TimmNetworkConfig, timm_network
from mergevq.weights_file import read_weights


@pytest.fixture(scope="module")
def vit() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return timm.create_model("test_vit", num_classes=0).state_dict()


def network(path: Path) -> torch.nn.Module:
    return timm_network(TimmNetworkConfig(model="test_vit", weights=str(path)), key="x", image_size=160).model


NO_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda value: (20 * value).to(torch.int8),
    "bool": lambda value: value > 0,
    "complex64": lambda value: value.to(torch.complex64),
    "sparse_coo": lambda value: value.to_sparse(),
}


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_weights_that_are_no_floats_are_refused_and_not_cast(
    vit: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    torch.save(vit | {"norm.weight": NO_WEIGHTS[kind](vit["norm.weight"])}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"no plain float numbers in norm\.weight \({kind}\)"):
        network(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(vit: dict[str, Tensor], tmp_path: Path, value: float) -> None:
    save_file(vit | {"norm.bias": torch.full((64,), value)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"NaN or infinity in norm\.bias \(1 in all\)"):
        network(tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_as_they_are(
    vit: dict[str, Tensor], tmp_path: Path, dtype: torch.dtype
) -> None:
    other = {name: value.to(dtype) for name, value in vit.items()}
    save_file(other, tmp_path / "w.safetensors")
    loaded = network(tmp_path / "w.safetensors").state_dict()
    assert all(torch.equal(loaded[name], other[name].float()) for name in other)


def test_a_saved_tokenizer_of_no_floats_or_of_nan_is_refused(tmp_path: Path) -> None:
    mergevq.save(mergevq.create("test_gr"), tmp_path / "t")
    file = tmp_path / "t" / "model.safetensors"
    good = load_file(file)
    name = "decoder.conv_out.weight"
    save_file(good | {name: good[name].to(torch.int8)}, file)
    with pytest.raises(
        InputError, match=rf"no plain float numbers in {name} \(int8\).*take another checkpoint"
    ):
        mergevq.load(tmp_path / "t")
    save_file(good | {name: good[name] * torch.nan}, file)
    with pytest.raises(InputError, match=rf"NaN or infinity in {name}"):
        mergevq.load(tmp_path / "t")


def test_an_encoder_is_not_started_from_quantized_weights(vit: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({name: (20 * value).to(torch.int8) for name, value in vit.items()}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"task\.initial_weights: .*no plain float numbers"):
        select_weights(mergevq.create("test_gr"), str(tmp_path / "w.safetensors"))


def test_arrays_and_indices_of_shards_are_named_for_what_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"norm.bias": np.zeros(4)})
    with pytest.raises(InputError, match=r"is an npz of NumPy arrays; it has norm\.bias\.npy"):
        read_weights(tmp_path / "w.npz", key="x")
    (tmp_path / "w.index.json").write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(InputError, match="is the index of weights in several files"):
        read_weights(tmp_path / "w.index.json", key="x")
