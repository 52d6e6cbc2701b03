"""Hosts on one machine: network namespaces with addresses of their own, on a bridge. Root only."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field


def why_not() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if os.geteuid():
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "needs the ip command (apt-get install iproute2)"
    tried = subprocess.run(["ip", "netns", "add", "mv-probe"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", "mv-probe"], capture_output=True)
    return f"network namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


def ip(*arguments: str) -> None:
    """Run `ip`; its complaint is the error."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


@dataclass
class Hosts:
    """`count` hosts 10.77.0.11 and on; a context manager that removes every trace of them."""

    count: int
    tag: str = field(default_factory=lambda: f"mv{os.getpid() % 100_000}")

    def __enter__(self) -> Hosts:
        try:
            ip("link", "add", self.tag, "type", "bridge")
            ip("link", "set", self.tag, "up")
            for number in range(self.count):
                name = self.name(number)
                ip("netns", "add", name)
                ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
                ip("link", "set", name, "master", self.tag, "up")
                ip("-n", name, "address", "add", f"{self.address(number)}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    ip("-n", name, "link", "set", device, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(self.count):
            name = self.name(number)
            listed = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True
            ).stdout.split()
            for pid in listed:
                subprocess.run(["kill", "-9", pid], capture_output=True)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            subprocess.run(["ip", "link", "delete", name], capture_output=True)
        subprocess.run(["ip", "link", "delete", self.tag], capture_output=True)

    def name(self, number: int) -> str:
        """The namespace, and the bridge's end of its cable."""
        return f"{self.tag}h{number}"

    def address(self, number: int) -> str:
        """The host's address."""
        return f"10.77.0.{11 + number}"

    def prefix(self, number: int) -> tuple[str, ...]:
        """What runs a command on the host."""
        return ("ip", "netns", "exec", self.name(number))

    def plugged(self, number: int, into: bool) -> None:
        """Pull the host's cable out of the bridge, or put it back: neither end is told more than a dead line tells."""
        ip("link", "set", self.name(number), *(("master", self.tag) if into else ("nomaster",)))

    def slowed(self, number: int, delay: str | None) -> bool:
        """Delay all that the host sends; False where the kernel cannot."""
        change = (
            ["replace", "dev", "eth0", "root", "netem", "delay", delay]
            if delay
            else ["delete", "dev", "eth0", "root"]
        )
        done = subprocess.run([*self.prefix(number), "tc", "qdisc", *change], capture_output=True)
        return done.returncode == 0
