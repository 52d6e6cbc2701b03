"""Scaled dot-product attention, by the way that is fastest where it runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v: (B, heads, T, d), (B, heads, S, d) twice -> (B, heads, T, d), in their dtype.

    `bias`: added to the logits, of a shape that spreads to (B, heads, T, S), or None. PyTorch's own, but for gradients in
    bfloat16 on a CPU: there PyTorch (2.14) takes two to four times as long as the products written out, whose logits are float32.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    with torch.autocast("cpu", enabled=False):
        logits = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)
        if bias is not None:
            logits = logits + bias
        return logits.softmax(-1).to(v.dtype) @ v
