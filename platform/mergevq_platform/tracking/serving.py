"""The loader that MLflow calls for a registered tokenizer: safetensors and a configuration in, a `predict` out.

MLflow's model names this module and not a pickle: `mlflow.pyfunc.load_model` works wherever this package is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import mergevq
from mergevq.errors import InputError
from mergevq.image_size import height_width
from mergevq.metrics import to_uint8

OUTPUTS = ("indices", "source", "features", "reconstructions")
KEEP_ALL = 0  # `keep` for every token; MLflow's parameters have no optional numbers


def _load_pyfunc(path: str) -> ServedTokenizer:  # MLflow's name for it
    return ServedTokenizer(path)


class ServedTokenizer:
    """A tokenizer that takes images (B, H, W, 3) uint8 of its own size and answers with arrays by name."""

    def __init__(self, path: str | Path) -> None:
        self.tokenizer = mergevq.load(path)
        if torch.cuda.is_available():
            self.tokenizer.cuda()

    @torch.inference_mode()
    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
        """The outputs that `params` asks for, of images (B, H, W, 3) uint8.

        `keep`: kept tokens, 0 for all; `output`: one of `OUTPUTS`, several with commas between, or `all`. Answers:
        `indices` (B, K) int64; `source` (B, N) int64, the kept token of each grid cell; `features` (B, D) float32, the
        summary token; `reconstructions` (B, H, W, 3) uint8. Raises `InputError` for anything else.
        """
        config, params = self.tokenizer.config, params or {}
        wanted = _outputs(params.get("output", "indices"))
        keep = int(params.get("keep", KEEP_ALL)) or config.grid_tokens
        images = np.asarray(images)
        height, width = height_width(config.image_size)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (height, width, 3):
            raise InputError(
                f"images are {images.dtype} {images.shape}: this tokenizer takes uint8 (B, {height}, {width}, 3)"
            )
        device = next(self.tokenizer.parameters()).device
        pixels = torch.from_numpy(images.copy()).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        encoded = self.tokenizer.encode(pixels, keep)
        answer = {}
        for name in wanted:
            match name:
                case "indices":
                    value = encoded.indices
                case "source":
                    value = encoded.source.assignment
                case "features":
                    value = encoded.summary.float()
                case _:
                    value = to_uint8(self.tokenizer.decode(encoded)).permute(0, 2, 3, 1)
            answer[name] = value.cpu().numpy()
        return answer


def _outputs(text: str) -> tuple[str, ...]:
    names = OUTPUTS if text == "all" else tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in OUTPUTS]:
        raise InputError(f"output '{unknown[0]}' is unknown: use all, or some of {', '.join(OUTPUTS)}")
    return names
