"""Ray Train's process group of the workers."""

from __future__ import annotations

from typing import Any

from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from mergevq_platform.distributed.node_interface import use_node_interface


class NodeInterfaceTorchConfig(TorchConfig):
    """Ray's process-group set-up, with gloo bound to the interface that carries the node's own address.

    Left alone, gloo resolves the host name, which on many machines is 127.0.0.1.
    """

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend class that Ray Train instantiates."""
        return _NodeInterfaceBackend


class _NodeInterfaceBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(use_node_interface)
        super().on_start(worker_group, backend_config)
