"""Decoding steps as CUDA graphs: hundreds of small kernels, recorded once, are launched as one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

Arguments = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Recording:
    """A function's recorded kernels. They read `arguments` and write `result` at their addresses of then."""

    graph: torch.cuda.CUDAGraph
    arguments: Arguments
    result: Tensor

    def __call__(self, arguments: Arguments) -> Tensor:
        for static, new in zip(self.arguments, arguments, strict=True):
            if static is not None and new is not None:
                static.copy_(new)
        self.graph.replay()
        return self.result


class CudaGraphs:
    """Calls functions of tensors. On a GPU the second call with equal `key` and shapes is recorded, later ones replay it.

    A launch costs the host about what the smallest kernels cost the GPU, and a step of decoding is made of them.
    A function may read and write tensors that it is not given, such as a cache: these must stay where they are, or
    `forget` be called. Nothing in it may wait for the device or choose by values. A result is valid until the next
    call with the same key.
    """

    def __init__(self, device: torch.device) -> None:
        self.enabled = device.type == "cuda"
        self.recordings: dict[Hashable, Recording | None] = {}

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
        if not self.enabled:
            return function(*arguments)
        shapes = tuple(None if a is None else (a.shape, a.dtype) for a in arguments)
        if (key, shapes) not in self.recordings:  # libraries set themselves up in a first call
            self.recordings[key, shapes] = None
            return function(*arguments)
        recording = self.recordings[key, shapes]
        if recording is None:
            recording = self.recordings[key, shapes] = _recorded(function, arguments)
        return recording(arguments)

    def forget(self) -> None:
        """Drop all recordings."""
        self.recordings.clear()


def _recorded(function: Callable[..., Tensor], arguments: Arguments) -> Recording:
    static = tuple(None if a is None else a.clone() for a in arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function(*static)
    return Recording(graph, static, result)
