"""Networks that come with their weights and are never trained: teachers and perceptual features."""

from __future__ import annotations

import difflib
import sys
from typing import Any

import timm
import torch
from torch import Tensor, nn

from mergevq.config import config
from mergevq.errors import InputError
from mergevq.file_kinds import some
from mergevq.variants import other_variant
from mergevq.weights_file import load_strictly, read_weights


class Frozen(nn.Module):
    """A module that takes no gradient, stays in eval mode, and is no part of what a resumed run restores.

    Call `freeze` at the end of the constructor.
    """

    def freeze(self) -> None:
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Frozen:
        del mode
        return super().train(False)


@config
class TimmNetwork:
    """A network of timm's, by name, with a weights file, or from timm's hub where `hub` allows to download.

    `weights`: a file in timm's own layout or in the layout of the model's original release where timm can
    convert it; `sha256`: its checksum, verified before use. `drop_path` and dropout never apply.
    """

    model: str
    weights: str | None = None
    sha256: str | None = None
    hub: bool = False

    def __post_init__(self) -> None:
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


def timm_network(network: TimmNetwork, *, key: str, image_size: int) -> Any:
    """The headless network for pictures of `image_size`; position embeddings are resampled to it.

    Raises `InputError` when the weights are missing, do not fit, or cannot be downloaded, and when the
    network cannot take `image_size`.
    """
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
    if network.weights is not None:
        state = read_weights(network.weights, key=f"{key}.weights", sha256=network.sha256)
        if difference := other_variant(state, model, network.model):
            raise InputError(f"{key}.weights: '{network.weights}' is not {network.model}: {difference}")
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            try:
                state = convert(state, model)
            except Exception as error:  # timm's converters fail in any way on names that they do not expect
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(
                    f"{key}.weights: '{network.weights}' is not in a layout of '{network.model}' ({reason}); it has "
                    f"{some(list(state))}"
                ) from None
        config = model.pretrained_cfg
        heads = config.get("classifier") or ()
        heads = (heads,) if isinstance(heads, str) else tuple(heads)
        # A head for classes is in most files; nothing of ours reads it.
        load_strictly(
            model, state, key=f"{key}.weights", source=network.weights, allow_extra=[f"{h}." for h in heads]
        )
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{key}: '{network.model}' cannot take {image_size} px pictures: {reason}") from None
    return model


class Renormalise(nn.Module):
    """From pictures in [-1, 1] to those that a network was trained with: (x / 2 + 1 / 2 - mean) / std."""

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
