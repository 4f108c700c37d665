"""The lab: a virtual machine that plays a physical host with an IOMMU and PCI devices.

It sees this machine's files through 9p, read-only, under an overlay of its own: what is installed here runs there, at
the same paths, and what it writes is gone with it. Its devices: an edu in a group of its own, two e1000e functions of
one slot, which are one group, and one e1000e more, all on vfio-pci.

``python -m tests.lab.host shell`` is `make lab`.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType

from tests.lab.image import build
from tests.support.runtime import Result

CACHE = "/var/cache/hawse"
_TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_BOOT_SECONDS = 120.0


class Lab:
    """A running lab, as a context. ``console`` is the file of its console, for evidence."""

    def __init__(self, directory: str) -> None:
        self.console = f"{directory}/lab-console.log"
        self._directory = directory
        self._channel, self._theirs = socket.socketpair()

    def __enter__(self) -> Lab:
        kernel, initrd = _build(self._directory)
        with open(self.console, "wb") as console:
            self._process = subprocess.Popen(
                [
                    *command(kernel, initrd, "serve"),
                    "-serial", "stdio",
                    "-chardev", f"socket,id=commands,fd={self._theirs.fileno()}",
                    "-device", "virtio-serial-pci",
                    "-device", "virtserialport,chardev=commands,name=lab.commands",
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=(self._theirs.fileno(),),
            )  # fmt: skip
        self._theirs.close()
        self._channel.settimeout(_BOOT_SECONDS)
        self.run(["true"], timeout=_BOOT_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.close()
        self._process.terminate()
        self._process.wait()

    def run(self, argv: Sequence[str], *, timeout: float = 120.0, cwd: str = _TOP) -> Result:
        """Run a command in the lab; times are in seconds. Raises OSError when the lab does not answer."""
        request = json.dumps({"argv": list(argv), "cwd": cwd, "timeout": timeout}).encode()
        self._channel.settimeout(timeout + 60)
        self._channel.sendall(struct.pack(">I", len(request)) + request)
        (length,) = struct.unpack(">I", self._receive(4))
        answer = json.loads(self._receive(length))
        return Result(answer["code"], answer["output"], answer["errors"])

    def python(self, text: str, *arguments: str, timeout: float = 120.0) -> Result:
        """Run Python there, with hawse and the tests importable."""
        return self.run([sys.executable, "-c", text, *arguments], timeout=timeout)

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._channel.recv(count - len(data))
            if not piece:
                raise ConnectionError(f"the lab ended; its console is {self.console}")
            data += piece
        return data


def command(kernel: str, initrd: str, mode: str) -> list[str]:
    """The lab's QEMU, without its serial line."""
    return [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35,kernel-irqchip=split", "-cpu", "max",
        "-m", "6144", "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot",
        "-device", "intel-iommu,intremap=on,caching-mode=on",
        "-device", "pcie-root-port,id=rp1,bus=pcie.0,slot=1,chassis=1",
        "-device", "pcie-root-port,id=rp2,bus=pcie.0,slot=2,chassis=2",
        "-device", "pcie-root-port,id=rp3,bus=pcie.0,slot=3,chassis=3",
        "-device", "edu,bus=rp1",
        "-netdev", "hubport,id=h0,hubid=0", "-netdev", "hubport,id=h1,hubid=0", "-netdev", "hubport,id=h2,hubid=0",
        "-device", "e1000e,bus=rp2,addr=0.0,multifunction=on,netdev=h0,romfile=",
        "-device", "e1000e,bus=rp2,addr=0.1,multifunction=on,netdev=h1,romfile=",
        "-device", "e1000e,bus=rp3,netdev=h2,romfile=",
        "-virtfs", "local,path=/,mount_tag=hostfs,security_model=none,readonly=on,multidevs=remap",
        "-kernel", kernel, "-initrd", initrd,
        "-append", f"console=ttyS0 quiet panic=-1 intel_iommu=on -- {mode}",
    ]  # fmt: skip


def _build(directory: str) -> tuple[str, str]:
    inside = os.path.join(_TOP, "tests", "lab", "inside.py")
    return build(directory, python=sys.executable, inside=inside, cache=CACHE)


def main() -> int:
    """A shell in the lab."""
    if not sys.stdin.isatty():
        print("the lab's shell needs a terminal", file=sys.stderr)
        return 1
    directory = os.path.join(_TOP, "build", "lab")
    kernel, initrd = _build(directory)
    return subprocess.call([*command(kernel, initrd, "shell"), "-serial", "mon:stdio"])


if __name__ == "__main__":
    sys.exit(main())
