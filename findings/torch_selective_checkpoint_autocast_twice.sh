#!/usr/bin/env bash
# PyTorch 2.14.1: a block under selective activation checkpointing that is applied twice in one autocast region (two views of a batch,
# say) raises in the backward pass. In the second call autocast finds the weights that the first has cast, in the recomputation it does
# not: that casts once more and so has other operations than were saved. With cache_enabled=False, or one call, all is well.
set -euo pipefail
place=$(mktemp -d); trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torch==2.14.1 numpy
"$place/venv/bin/python" - <<'PY'
import functools

import torch
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

kept = functools.partial(create_selective_checkpoint_contexts, [torch.ops.aten.convolution.default, torch.ops.aten._to_copy.default])


def backward(calls, cache):
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1), torch.nn.SiLU())
    views = [torch.randn(1, 4, 8, 8, requires_grad=True) for _ in range(calls)]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
        outputs = [checkpoint(block, view, use_reentrant=False, context_fn=kept) for view in views]
    try:
        sum(output.float().sum() for output in outputs).backward()
    except RuntimeError as error:
        return str(error).splitlines()[0][:90]
    return "fine"


found = {(calls, cache): backward(calls, cache) for calls in (1, 2) for cache in (True, False)}
print("torch", torch.__version__, found)
assert found[1, True] == found[1, False] == found[2, False] == "fine"
assert found[2, True] != "fine", "changed: the second call may be recomputed"
PY
