"""A process that makes a stage-1 step of the official code for every line it reads, and prints its seconds: `official` takes it in turn.

    python -P official_step.py CHECKOUT BATCH KEEP PRECISION

What it computes is `MergeVQModel.training_step` of taming/models/lfqgan_rep.py without Lightning, teacher and LPIPS, by its classes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import resource
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SIZE = 128
# configs/gpu_s1/imagenet_mergevq_256_GR_d32_8gpu_200ep.yaml at half the resolution, with one kept count and no weights of others.
MODEL: dict[str, Any] = {
    "double_z": False,
    "z_channels": 18,
    "resolution": SIZE,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [2, 2, 4, 8, 12],
    "num_res_blocks": 4,
    "num_att_blocks": 12,
    "num_heads": 8,
    "dist_head": "layer3",
    "num_classes": 768,
}
LOSS: dict[str, Any] = {
    "disc_conditional": False,
    "disc_in_channels": 3,
    "disc_start": 0,
    "disc_weight": 0.8,
    "gen_loss_weight": 0.1,
    "lecam_loss_weight": 0.01,
    "codebook_weight": 0.1,
    "commit_weight": 0.25,
    "codebook_enlarge_ratio": 0,
    "perceptual_weight": 0.0,
}


class OfficialTokenizer(nn.Module):
    """Encoder, quantizer and decoder of the official code, joined as its `MergeVQModel.forward` joins them."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        parts = importlib.import_module("taming.modules.diffusionmodules.model_mergevq")
        quantize = importlib.import_module("taming.modules.vqvae.lookup_free_quantize")
        merged = (SIZE // 16) ** 2 - keep
        self.encoder = parts.MergeVQEncoder(**MODEL, merge_num=merged)
        self.decoder = parts.MergeVQDecoder(**MODEL, merge_num=merged)
        self.recovery = parts.SourceRecovery(learn_source=False)
        self.quantize = quantize.LFQ(dim=18, codebook_size=2**18)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Reconstructions, the entropy loss, and the losses by name."""
        (codes, entropy_loss, _), losses = self.quantize(self.encoder(images), return_loss_breakdown=True)
        source = self.encoder.attn._tome_info["source"][:, 1:, 1:]  # without the class token
        cells = self.recovery(codes.flatten(2).transpose(1, 2), source).transpose(1, 2)
        batch, channels, count = cells.shape
        side = round(count**0.5)
        return self.decoder(cells.reshape(batch, channels, side, side)), entropy_loss, losses


def main() -> None:
    """Print {"peak": bytes so far, "loss": the tokenizer's} when ready and {"seconds", "peak", "loss"} for each line of standard input."""
    checkout, batch, keep, precision = sys.argv[1:]
    sys.path.insert(0, checkout)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the loss says its name
            step = official_step(int(batch), int(keep), precision)
    except ImportError as error:
        raise SystemExit(f"--official {checkout}: its code cannot be imported: {error}") from None
    _say(loss=step())
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = step()
        _say(seconds=time.perf_counter() - began, loss=loss)


def official_step(batch: int, keep: int, precision: str) -> Callable[[], float]:
    """The function that makes one step with both updates and returns the tokenizer's loss.

    bfloat16 is autocast, as the trainer's `bf16-mixed` of the official configuration has it.
    """
    without_lpips = types.ModuleType("taming.modules.losses.lpips")
    setattr(without_lpips, "LPIPS", nn.Identity)  # noqa: B010  the module has no such attribute before
    sys.modules[without_lpips.__name__] = without_lpips
    losses_of = importlib.import_module("taming.modules.losses.vqperceptual")
    torch.manual_seed(0)
    tokenizer = OfficialTokenizer(keep).train()
    loss_of = losses_of.VQLPIPSWithDiscriminator(**LOSS).train()
    images = torch.rand(batch, 3, SIZE, SIZE) * 2 - 1
    updates = (_optimizer(tokenizer), _optimizer(loss_of.discriminator))

    def step() -> float:
        mixed = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
        with mixed:
            reconstructions, entropy_loss, losses = tokenizer(images)
        first = 0.0
        for phase, optimizer in enumerate(updates):
            with mixed:
                total, _ = loss_of(entropy_loss, losses, images, reconstructions, phase, global_step=0)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            first = first or float(total.detach())
        return first

    return step


def _optimizer(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-4, betas=(0.5, 0.9), fused=True)


def _say(**values: float) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(values | {"peak": peak}), flush=True)


if __name__ == "__main__":
    main()
