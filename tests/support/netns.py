"""Network namespaces for tests: one that an engine would prepare, and one outside, at the other ends of its cables."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from types import TracebackType
from typing import Any

from hawse.host import network_namespace


class Namespace:
    """A named network namespace, as a context manager; ``path`` is for the configuration."""

    def __init__(self) -> None:
        self.name = f"hawse-{uuid.uuid4().hex[:12]}"
        self.path = f"/run/netns/{self.name}"

    def __enter__(self) -> Namespace:
        run("ip", "netns", "add", self.name)
        self.ip("link set lo up")
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        run("ip", "netns", "del", self.name)

    def ip(self, words: str) -> None:
        """Run an ip command in the namespace."""
        run("ip", "-n", self.name, *words.split())

    def tc(self, words: str) -> str:
        """Run a tc command in the namespace."""
        return run("tc", "-n", self.name, *words.split())

    def execute(self, *argv: str) -> str:
        """Run a program in the namespace, which must succeed; returns its output."""
        return run("ip", "netns", "exec", self.name, *argv)

    def shown(self, words: str) -> Any:
        """The output of an ip command, from JSON."""
        return json.loads(run("ip", "-json", "-n", self.name, *words.split()) or "[]")

    def links(self) -> list[str]:
        """The names of its interfaces except lo."""
        return sorted(link["ifname"] for link in self.shown("link show") if link["ifname"] != "lo")

    def traffic_control(self) -> str:
        """Its ingress qdiscs and filters: everything that a sandbox could leave behind."""
        filters = "".join(self.tc(f"filter show dev {name} ingress") for name in self.links())
        qdiscs = [line for line in self.tc("qdisc show").splitlines() if "ingress" in line or "clsact" in line]
        return "\n".join([*qdiscs, filters]).strip()

    def inode(self) -> int:
        """Its inode number, which a later namespace may get again."""
        return os.fstat(self.fd).st_ino

    def cookie(self) -> int:
        """Its cookie, which identifies it uniquely."""
        return network_namespace.cookie(self.fd)


def cable(inside: Namespace, outside: Namespace, name: str, *, net: int, settings: str = "") -> None:
    """A veth pair, ``name`` inside and the same outside: 10.77.NET.2 and fd77:NET::2 inside, .1 and ::1 outside."""
    run("ip", "link", "add", name, "netns", inside.name, "type", "veth", "peer", "name", name, "netns", outside.name)
    if settings:
        inside.ip(f"link set {name} {settings}")
    for namespace, host in ((inside, 2), (outside, 1)):
        namespace.ip(f"addr add 10.77.{net}.{host}/24 brd + dev {name}")
        namespace.ip(f"addr add fd77:{net}::{host}/64 dev {name} nodad")
        namespace.ip(f"link set {name} up")


def run(*argv: str) -> str:
    """Run a program, which must succeed; returns its output."""
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout
