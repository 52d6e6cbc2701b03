"""Work that repeats with equal shapes, as CUDA graphs: thousands of small kernels, recorded once, are launched as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEYS = 10_000  # that are remembered: a key that never comes again must not fill memory

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
    """Calls functions of tensors. On a GPU a later call with equal `key` and shapes is recorded, and those after it replay it.

    A launch costs the host about what the smallest kernels cost the GPU, and a step of decoding or training is made of
    them. A function may read and write tensors that it is not given, such as a cache or weights: these must stay where
    they are, or `forget` be called. Nothing in it may wait for the device or choose by values. A result is valid until
    the next call with the same key. Random numbers go on from the generator's state at each call.

    `calls_before`: the calls before it, in which libraries set themselves up. `most`: recordings at the most; what comes
    after them is called as ever. With `share_memory` recordings take their memory from one pool. `on_failure` is told,
    once, why a function could not be recorded; from then on every function is called as ever. Without it the error is
    raised.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        calls_before: int = 1,
        most: int = 4096,
        share_memory: bool = False,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        self.enabled = device.type == "cuda"
        self.recordings: dict[Hashable, Recording] = {}
        self.calls: Counter[Hashable] = Counter()
        self.calls_before = calls_before
        self.most, self.share_memory, self.on_failure = most, share_memory, on_failure
        self.memory: Any = None  # PyTorch's handle of the pool

    def __call__(self, key: Hashable, function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
        if not self.enabled:
            return function(*arguments)
        found = (key, tuple(None if a is None else (a.shape, a.dtype) for a in arguments))
        recording = self.recordings.get(found)
        if recording is None:
            if self.calls[found] >= self.calls_before and len(self.recordings) < self.most:
                recording = self._try(found, function, arguments)
            elif len(self.calls) < KEYS:
                self.calls[found] += 1
        return function(*arguments) if recording is None else recording(arguments)

    def forget(self) -> None:
        """Drop all recordings."""
        self.recordings.clear()
        self.calls.clear()
        self.memory = None  # a pool that no recording holds cannot be taken up again

    def _try(
        self, found: Hashable, function: Callable[..., Tensor], arguments: Arguments
    ) -> Recording | None:
        if self.share_memory and self.memory is None:
            self.memory = torch.cuda.graph_pool_handle()
        try:
            self.recordings[found] = _recorded(function, arguments, self.memory)
        except RuntimeError as error:
            if self.on_failure is None:
                raise
            self.enabled = False
            self.forget()
            _leave_recording()
            self.on_failure(str(error).splitlines()[0])
        return self.recordings.get(found)


def _recorded(function: Callable[..., Tensor], arguments: Arguments, memory: Any) -> Recording:
    static = tuple(None if a is None else a.clone() for a in arguments)
    graph = torch.cuda.CUDAGraph()
    # Other threads, which read images ahead, may call CUDA meanwhile.
    with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
        result = function(*static)
    return Recording(graph, static, result)


def _leave_recording() -> None:
    """Give the generator of random numbers a state that no broken recording holds."""
    torch.cuda.synchronize()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())
