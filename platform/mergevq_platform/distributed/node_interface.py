"""The network interface that carries a node's own address, and gloo bound to it."""

from __future__ import annotations

import os
import socket

import psutil


def use_node_interface() -> None:
    """Point gloo at the interface that has this node's Ray address, unless the user chose one."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The name of the network interface that carries an IP address, or None."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in (socket.AF_INET, socket.AF_INET6) and a.address == address for a in addresses):
            return name
    return None
