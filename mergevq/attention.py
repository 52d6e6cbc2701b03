"""Scaled dot-product attention, by the way that is fastest where it runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_PRECISIONS = (torch.bfloat16, torch.float16)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v: (B, heads, T, d), (B, heads, S, d) twice -> (B, heads, T, d), in their dtype.

    `bias`: added to the logits, of a shape that spreads to (B, heads, T, S), or None. PyTorch's own, but for gradients in
    half precision on a CPU: there PyTorch (2.14) takes two to four times as long as the products written out.
    """
    if q.device.type != "cpu" or q.dtype not in HALF_PRECISIONS or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
