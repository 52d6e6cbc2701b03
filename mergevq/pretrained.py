"""Pretrained networks that are never trained here: frozen modules and the builder of timm networks."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mergevq.config import config
from mergevq.errors import InputError
from mergevq.file_kinds import some
from mergevq.image_size import ImageSize, height_width, size_text
from mergevq.paths import WeightsPath
from mergevq.variants import other_variant
from mergevq.weights_file import load_strictly, read_weights

PREFIX_TOKENS = 8  # at most: [CLS], distillation and register tokens before a network's patches


class FrozenModule(nn.Module):
    """A module that takes no gradient, stays in eval mode, and is not part of a run's state.

    Call `freeze` at the end of the constructor.
    """

    def freeze(self) -> None:
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenModule:
        del mode
        return super().train(False)


@config
class TimmNetworkConfig:
    """A timm network by name, with weights from a file, or from timm's hub where `hub` allows the download.

    `weights`: a file in timm's own layout or in the layout of the model's original release where timm can
    convert it; `sha256`: its checksum, verified before use. `drop_path` and dropout never apply.
    """

    model: str
    weights: WeightsPath | None = None
    sha256: str | None = None
    hub: bool = False

    def __post_init__(self) -> None:
        import timm  # takes seconds, and most processes build no network of it

        if not timm.is_model(self.model):
            close = difflib.get_close_matches(self.model.partition(".")[0], timm.list_models(), n=3)
            raise ValueError(
                f"timm has no model '{self.model}'" + (f": did you mean {close}?" if close else "")
            )
        if self.weights is None and not self.hub:
            raise ValueError(
                f"'{self.model}' needs weights: give a weights file, or set hub: true to download them"
            )
        if self.weights is None and self.sha256 is not None:
            raise ValueError("sha256 belongs to a weights file: give weights, or leave it out")


class TimmModel(NamedTuple):
    """A timm network with its weights."""

    model: Any  # timm's interface is more than nn.Module's
    positions: (
        str | None
    )  # how its position embeddings were resampled; None where they are as they were trained


def timm_network(network: TimmNetworkConfig, *, key: str, image_size: ImageSize) -> TimmModel:
    """The headless network for images of `image_size`; position embeddings are resampled to it.

    Raises `InputError` when the weights are missing, do not fit, or cannot be downloaded, and when the
    network cannot take `image_size`.
    """
    import timm

    sized: dict[str, Any] = {"img_size": image_size}
    build: dict[str, Any] = {"num_classes": 0, "pretrained": network.weights is None}
    try:
        try:
            model: Any = timm.create_model(network.model, **build, **sized)
        except TypeError:  # convolutional networks take any size and have no such argument
            model = timm.create_model(network.model, **build)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        fix = f"give {key}.weights a file" if network.weights is None else "name another model"
        raise InputError(f"{key}.model: timm cannot make '{network.model}' ({reason}): {fix}") from None
    positions = _native_positions(model) if network.weights is None else None
    if network.weights is not None:
        state = read_weights(network.weights, key=f"{key}.weights", sha256=network.sha256)
        if difference := other_variant(state, model, network.model):
            raise InputError(f"{key}.weights: '{network.weights}' is not {network.model}: {difference}")
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            trained = state
            try:
                state = convert(trained, model)
            except Exception as error:  # timm's converters fail in any way on names that they do not expect
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(
                    f"{key}.weights: '{network.weights}' is not in a layout of '{network.model}' ({reason}); it has "
                    f"{some(list(state))}"
                ) from None
            positions = _resampled(_grids(trained), _grids(state, _own_grid(model)))
        config = model.pretrained_cfg
        heads = config.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        # A head for classes is in most files; nothing of ours reads it.
        load_strictly(
            model, state, key=f"{key}.weights", source=network.weights, allow_extra=[f"{h}." for h in heads]
        )
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, *height_width(image_size)))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{key}: '{network.model}' cannot take {size_text(image_size)} px images: {reason}"
        ) from None
    return TimmModel(model, positions)


Grid = tuple[int, int]  # rows and columns


def _grids(state: Mapping[str, Tensor], own: Grid | None = None) -> dict[str, Grid]:
    """The grid that each absolute position embedding (1, prefix + rows * columns, D) is for, by its name.

    It is `own` where that fits; squares alone can be told from the number.
    """
    found = {}
    for name, value in state.items():
        if "pos_embed" in name and value.ndim == 3:
            side = math.isqrt(value.shape[1])  # a few prefix tokens do not reach the next square
            fits = own is not None and 0 <= value.shape[1] - own[0] * own[1] <= PREFIX_TOKENS
            found[name] = own if fits and own is not None else (side, side)
    return found


def _own_grid(model: Any) -> Grid | None:
    rows_columns = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return None if rows_columns is None else (int(rows_columns[0]), int(rows_columns[1]))


def _resampled(trained: Mapping[str, Grid], used: Mapping[str, Grid]) -> str | None:
    grids = {(trained[name], grid) for name, grid in used.items() if trained.get(name, grid) != grid}
    if not grids:
        return None
    told = ", ".join(f"{a} x {b} to {c} x {d}" for (a, b), (c, d) in sorted(grids))
    # timm's `resample_abs_pos_embed`; DINOv2's release adds an offset of 0.1 and does not antialias.
    return f"resampled from {told}: bicubic, antialiased, no offset (timm)"


def _native_positions(model: Any) -> str | None:
    # Weights of timm's hub are those of the network's own resolution.
    used = _grids(dict(model.named_parameters()), _own_grid(model))
    native = model.pretrained_cfg.get("input_size")
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if not used or native is None or patch is None:
        return None
    grid = (native[-2] // patch[-2], native[-1] // patch[-1])
    return _resampled(dict.fromkeys(used, grid), used)


class Renormalise(nn.Module):
    """Images in [-1, 1] -> a network's own normalisation: (x / 2 + 1 / 2 - mean) / std."""

    factor: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        std_tensor = torch.tensor(std).view(1, 3, 1, 1)
        shift = (0.5 - torch.tensor(mean).view(1, 3, 1, 1)) / std_tensor
        self.register_buffer("factor", 0.5 / std_tensor, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factor + self.shift
