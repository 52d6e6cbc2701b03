"""Weights files: reading of their tensors, and loading into a network by strict names.

A file is safetensors or PyTorch's, whatever its name. Nothing in it is run. Prefixes of wrappers and the nesting of
training scripts are removed.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mergevq.errors import InputError
from mergevq.file_kinds import check_kind, is_safetensors, is_torchscript, some

# Where training scripts keep the state dict, and where its running average; the first that a file has is read.
NESTS = ("state_dict", "model", "model_state_dict", "module", "net", "params", "weights", "teacher")
AVERAGES = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "shadow")
# Put before all names by DistributedDataParallel, torch.compile, FSDP, activation checkpoints, and by classes around a
# network.
OUTER = (
    "module.",
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "model.",
    "backbone.",
    "teacher.",
    "ema.",
)
# Those that wrap parts of a network too; no network of ours or timm's has such a part.
INNER = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
COUNTER = "n_averaged"  # what torch's AveragedModel keeps beside a module's names


def read_weights(path: str | Path, *, key: str, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a PyTorch file holding a (nested) state dict, on the CPU, by names
    without wrappers.

    `key` is the configuration key that named the file. Raises `InputError` for a missing file, a checksum
    that is not `sha256`, and a file that holds anything else.
    """
    named = f"{key}: '{path}'"
    if not Path(path).exists():
        raise InputError(f"{key}: there is no weights file '{path}': download it there, or give its path")
    check_kind(path, named=named)
    if sha256 is not None:
        actual = file_sha256(path)
        if actual != sha256.lower():
            raise InputError(f"{named} has SHA-256 {actual}, expected {sha256}: fetch it again or correct it")
    return state_in(read_tensors(path, named=named), named=named)


def file_sha256(path: str | Path) -> str:
    """The hash of a file, in hexadecimal."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_tensors(path: str | Path, *, named: str) -> Any:
    """The content of a weights file on the CPU: names and tensors, or for PyTorch's the saved object.

    Raises `InputError`, which calls the file `named`, for one that is damaged, or that is more than numbers and text.
    """
    check_kind(path, named=named)
    if is_safetensors(path):
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{named} is a damaged safetensors file ({reason}): fetch it again") from None
    if is_torchscript(path):
        raise InputError(
            f"{named} is a TorchScript program, which is not run: give its weights as a state dict"
        )
    try:
        # Open: what a file is called must not decide how torch reads it.
        with Path(path).open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for files that are no checkpoints
        # Its text is not repeated: it says how to run what a file holds.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found:
        raise InputError(
            f"{named} cannot be read as tensors alone: it holds '{found[1]}', which could run code: give a file of its "
            "state dict, best as safetensors"
        )
    raise InputError(
        f"{named} cannot be read as tensors alone: it is damaged, or not a safetensors file or a PyTorch state dict: "
        "fetch it again, or give one of these"
    )


def state_in(loaded: Any, *, named: str) -> dict[str, Tensor]:
    """The state dict within what a file holds, its names without wrappers. Raises `InputError` where there is none."""
    state = loaded
    while isinstance(state, dict):
        trained, averaged = (
            next((nest for nest in nests if isinstance(state.get(nest), dict) and state[nest]), None)
            for nests in (NESTS, AVERAGES)
        )
        if trained and averaged:
            raise InputError(
                f"{named} holds trained weights in '{trained}' and their average in '{averaged}': give a file of one of them"
            )
        inner = trained or averaged
        if inner is None:
            break
        state = state[inner]
    if not _names_and_tensors(state):
        raise InputError(
            f"{named} does not hold a state dict (names and tensors): {_contents(state)}: give a file of one"
        )
    bare = without_wrappers(state)
    if len(bare) != len(state) - (COUNTER in state and COUNTER not in bare):
        raise InputError(f"{named} has two tensors of one name where wrappers are taken off: keep one")
    return bare


def without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by their names without what wrappers put before all of them, or before parts."""
    for inner in INNER:
        state = {_without(name, inner): value for name, value in state.items()}
    while True:
        names = [name for name in state if name != COUNTER]
        outer = next((w for w in OUTER if names and all(name.startswith(w) for name in names)), None)
        if outer is None:
            return state
        state = {name.removeprefix(outer): state[name] for name in names}


def load_strictly(
    module: nn.Module,
    state: dict[str, Tensor],
    *,
    key: str,
    source: str,
    allow_extra: Iterable[str] = (),
    name: Callable[[str], str] = str,
    among: str = "",
) -> None:
    """Load `state` into `module`; names and shapes must fit, but for extra names starting as `allow_extra`.

    `name` says what the file calls a tensor of the module; of the file, only names that begin with `among` are looked
    at. Raises `InputError` naming the first names that do not fit, and what the file has instead.
    """
    expected = {name(own): value for own, value in module.state_dict().items()}
    if text := misfit(expected, state, allow_extra=allow_extra, among=among) or unusable(expected, state):
        raise InputError(f"{key}: '{source}' does not fit this network: it {text}: give its own weights")
    module.load_state_dict({own: state[name(own)] for own in module.state_dict()})


def misfit(
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    allow_extra: Iterable[str] = (),
    among: str = "",
) -> str | None:
    """The differences of `state` from the names and shapes `expected`, in words; None where it fits."""
    missing = [name for name in expected if name not in state]
    extra = [
        name
        for name in state
        if name not in expected and name.startswith(among) and not name.startswith(tuple(allow_extra))
    ]
    shapes = [
        f"{name} ({_shape(state[name])} for {_shape(value)})"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    problems = [("lacks", missing), ("has unknown", extra), ("has other shapes for", shapes)]
    told = [f"{what} {some(names)}" for what, names in problems if names]
    if len(missing) == len(expected) and not extra:
        told.append(f"it has {some(list(state))}")
    return "; ".join(told) or None


def unusable(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """The tensors that fit by name and shape but hold no finite plain floats, in words; None without any.

    Half precision becomes float32 as it is; what is quantized, complex or sparse does not, nor is NaN a weight.
    """
    floats = {name: state[name] for name, value in expected.items() if value.is_floating_point()}
    others = {name: _numbers(value) for name, value in floats.items()}
    told = [f"{name} ({kind})" for name, kind in others.items() if kind is not None]
    if told:
        return f"has no plain float numbers in {some(told)}"
    broken = [name for name, value in floats.items() if not value.float().isfinite().all()]
    return f"has NaN or infinity in {some(broken)}" if broken else None


def _numbers(value: Tensor) -> str | None:
    if value.layout != torch.strided:
        return str(value.layout).removeprefix("torch.")
    return None if value.is_floating_point() else str(value.dtype).removeprefix("torch.")


def _names_and_tensors(state: Any) -> bool:
    return (
        isinstance(state, dict)
        and bool(state)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items())
    )


def _without(name: str, inner: str) -> str:
    return re.sub(rf"(^|(?<=\.)){re.escape(inner)}", "", name)


def _contents(state: Any) -> str:
    if not isinstance(state, dict):
        return f"it holds a {type(state).__name__}"
    if not state:
        return "it holds nothing"
    return f"it holds {some([str(name) for name in state])}, and under none of the usual names tensors alone"


def _shape(value: Tensor) -> str:
    return " x ".join(str(side) for side in value.shape) or "a number"
