"""The agent before the link exists: it binds virtio drivers and finds the port of the link."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hawse.agent.machine import boot
from hawse.link.agreed import PORT_NAME
from tests.support.guest_kernel import FakeKernel

SERIAL, SHARE, NETWORK = "0000:00:03.0", "0000:00:04.0", "0000:00:05.0"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    kernel = FakeKernel(str(tmp_path))
    kernel.function(SERIAL, group=3, driver="")
    kernel.attribute(SERIAL, "vendor", "0x1af4\n")
    yield kernel
    kernel.close()


def add_port(kernel: FakeKernel, number: int, name: str) -> None:
    kernel.write(f"dev/vport1p{number}", "")
    kernel.write(f"sys/class/virtio-ports/vport1p{number}/name", f"{name}\n")


def opened(kernel: FakeKernel) -> str:
    """The name of the port. It is opened for reading and writing; other programs do not inherit it."""
    fd = boot.open_link(root=kernel.root)
    try:
        assert os.write(fd, b"x") == 1
        assert os.pread(fd, 1, 0) == b"x"
        assert not os.get_inheritable(fd)
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
    finally:
        os.close(fd)


def test_only_virtio_functions_without_a_driver_are_probed(kernel: FakeKernel) -> None:
    """A function of another vendor may be a passed-through device."""
    kernel.function(SHARE, group=4, driver="virtio-pci")
    kernel.attribute(SHARE, "vendor", "0x1af4\n")
    kernel.function(NETWORK, group=5, driver="")
    boot.probe_virtio(root=kernel.root)
    assert kernel.probed() == [SERIAL]


def test_link_is_the_port_with_its_name(kernel: FakeKernel) -> None:
    for number, name in enumerate(("org.qemu.guest_agent.0", PORT_NAME, "com.example")):
        add_port(kernel, number, name)
    assert opened(kernel) == "vport1p1"
    assert kernel.probed() == [SERIAL]


def test_port_that_appears_after_the_probe_is_found(kernel: FakeKernel) -> None:
    """The directory of ports, a port whose name cannot be read yet, then the port."""

    def appear() -> None:
        os.makedirs(f"{kernel.root}/sys/class/virtio-ports/vport1p0")
        add_port(kernel, 1, PORT_NAME)

    later = threading.Timer(0.05, appear)
    later.start()
    assert opened(kernel) == "vport1p1"
    later.join()
