"""Functions that get ready step by step: each step of the guest kernel is awaited in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hawse.agent.devices.hardware import bind_vfio, bind_virtio
from hawse.errors import DeviceError
from tests.support.guest_kernel import FakeKernel, FakeUevents

ADDRESS = "0000:01:00.0"
DEVICE = f"sys/bus/pci/devices/{ADDRESS}"


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[FakeKernel]:
    kernel = FakeKernel(str(tmp_path))
    yield kernel
    kernel.close()


def bind(kernel: FakeKernel, *steps: Callable[[], None]) -> dict[str, object]:
    uevents = FakeUevents(*steps, lambda: None)
    answer = bind_vfio(uevents, ADDRESS, seconds=20, root=kernel.root)
    assert len(uevents.steps) == 1, "no further wait"
    return answer


def test_every_link_of_the_chain_may_appear_later(kernel: FakeKernel) -> None:
    group = f"{kernel.root}/{DEVICE}/iommu_group"

    def appear() -> None:
        kernel.function(ADDRESS, group=6, driver="")
        os.rename(group, f"{group}-later")

    steps = (
        appear,
        lambda: kernel.bind(ADDRESS, "vfio-pci"),
        lambda: os.rename(f"{group}-later", group),
        lambda: kernel.write("sys/class/vfio/6/dev", "245:0\n"),
        lambda: kernel.write("dev/vfio/6", ""),
    )
    answer = bind(kernel, *steps)
    assert (answer["group"], answer["major"], answer["minor"]) == (6, 245, 0)
    assert kernel.probed() == [ADDRESS]


def test_node_without_numbers_is_awaited(kernel: FakeKernel) -> None:
    kernel.function(ADDRESS, group=6)
    kernel.write("dev/vfio/6", "")
    assert bind(kernel, lambda: kernel.write("sys/class/vfio/6/dev", "245:0\n"))["major"] == 245
    assert kernel.probed() == [], "the driver has it already"


def test_other_driver_is_unbound_first(kernel: FakeKernel) -> None:
    kernel.function(ADDRESS, group=6, driver="e1000e")
    kernel.node(6, 245, 0)

    def rebind() -> None:
        os.unlink(f"{kernel.root}/{DEVICE}/driver")
        kernel.bind(ADDRESS, "vfio-pci")

    bind(kernel, rebind)
    assert Path(kernel.root, "sys/bus/pci/drivers/e1000e/unbind").read_text() == ADDRESS
    assert kernel.read(ADDRESS, "driver_override") == "vfio-pci"


def test_vfio_driver_is_not_unbound(kernel: FakeKernel) -> None:
    kernel.function(ADDRESS, group=6, driver="vfio-pci")
    kernel.node(6, 245, 0)
    bind(kernel)
    assert "unbind" not in os.listdir(f"{kernel.root}/sys/bus/pci/drivers/vfio-pci")


def test_virtio_function_keeps_its_driver(kernel: FakeKernel) -> None:
    kernel.function(ADDRESS, group=6, driver="")
    bind_virtio(FakeUevents(lambda: kernel.bind(ADDRESS, "virtio-pci")), ADDRESS, seconds=20, root=kernel.root)
    assert kernel.read(ADDRESS, "driver_override") == "virtio-pci"
    assert kernel.probed() == [ADDRESS]


def test_failed_write_to_a_function_is_reported_with_the_reason(kernel: FakeKernel) -> None:
    kernel.function(ADDRESS, group=6, driver="")
    os.unlink(f"{kernel.root}/{DEVICE}/driver_override")
    os.mkdir(f"{kernel.root}/{DEVICE}/driver_override")
    with pytest.raises(DeviceError, match="appeared in the guest, but does not bind to vfio-pci: Is a directory"):
        bind(kernel)


def test_numbers_without_a_node_are_not_enough(kernel: FakeKernel) -> None:
    kernel.function(ADDRESS, group=6)
    kernel.write("sys/class/vfio/6/dev", "245:0\n")
    with pytest.raises(DeviceError, match="in the guest's group 6, but /dev/vfio/6 did not appear within 20 s"):
        bind(kernel)
