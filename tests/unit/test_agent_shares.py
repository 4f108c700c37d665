"""The directory that the host shares, mounted in the guest."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hawse.agent.calls import guest as calls_guest
from hawse.agent.calls.devices import DeviceCalls
from hawse.agent.calls.machine import MachineCalls
from hawse.agent.calls.registry import Containers
from hawse.agent.system.reaper import Reaper
from hawse.errors import DeviceError, VmError
from hawse.link.blocking import Port
from hawse.monitor.agent.calls import MountShare, parameters
from tests.support.guest_kernel import FakeKernel, FakeUevents

ADDRESS = "0000:04:00.0"


class Guest:
    """Calls whose mounts answer with the error numbers that are given, 0 for success."""

    def __init__(self, kernel: FakeKernel, directory: str, *answers: int) -> None:
        self.answers = list(answers)
        self.loaded: list[tuple[str, ...]] = []
        self.mounts: list[tuple[Any, ...]] = []
        self.uevents = FakeUevents(*[self.event] * 20)
        shared = calls_guest.Guest(
            Port(-1), reaper=Reaper(), uevents=self.uevents, load=self.loaded.append, run=directory, root=kernel.root,
            mount=self.mount,
        )  # fmt: skip
        self.machine = MachineCalls(shared, prepare_crun=lambda: None)
        self.devices = DeviceCalls(shared, Containers(shared))

    def event(self) -> None:
        """Nothing that concerns the share."""

    def mount(self, *arguments: Any) -> None:
        self.mounts.append(arguments)
        if number := self.answers.pop(0):
            raise OSError(number, os.strerror(number))


def share(kind: str, tag: str, *, seconds: float) -> dict[str, Any]:
    """The parameters of the call."""
    return parameters(MountShare(kind=kind, tag=tag, address=ADDRESS, seconds=seconds, protected={}))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Guest]]:
    kernel = FakeKernel(str(tmp_path / "root"))
    kernel.function(ADDRESS, group=4, driver="virtio-pci")
    yield lambda *answers: Guest(kernel, str(tmp_path / "run"), *answers)
    kernel.close()


@pytest.mark.parametrize(
    ("kind", "modules", "options"),
    [("virtiofs", ("virtiofs",), set()), ("9p", ("9p", "9pnet_virtio"), {"trans=virtio", "cache=mmap", "directio"})],
)
def test_a_share_is_mounted_when_its_driver_has_found_it(
    make: Callable[..., Guest], tmp_path: Path, kind: str, modules: tuple[str, ...], options: set[str]
) -> None:
    """EINVAL is virtiofs's error for an unknown tag (fs/fuse/virtio_fs.c), ENOENT that of 9p."""
    guest = make(errno.EINVAL, errno.ENOENT, 0)
    guest.machine.mount_share(**share(kind, "share", seconds=20))
    assert guest.loaded == [modules]
    assert len(guest.mounts) == 3
    *arguments, text = guest.mounts[-1]
    assert arguments == ["share", str(tmp_path / "run/share"), kind, 0]
    assert options == ({"trans=virtio", "cache=mmap", "directio"} & set(text.split(",")))
    assert bool(text) == bool(options)
    assert os.path.isdir(tmp_path / "run/share")


@pytest.mark.parametrize(("seconds", "number"), [(20, errno.ENODEV), (0, errno.EINVAL)])
def test_a_share_that_cannot_be_mounted_is_an_error(make: Callable[..., Guest], seconds: int, number: int) -> None:
    """Any other error at once, one of an unknown tag at the deadline."""
    guest = make(number)
    with pytest.raises(VmError) as caught:
        guest.machine.mount_share(**share("virtiofs", "t1", seconds=seconds))
    assert caught.value.message == f"the guest cannot mount the virtiofs share t1: {os.strerror(number)}"
    assert len(guest.mounts) == 1


def test_other_functions_are_asked_for_by_their_calls(make: Callable[..., Guest], tmp_path: Path) -> None:
    """The modules of VFIO and of the network are loaded before the function is waited for."""
    guest = make()
    with pytest.raises(DeviceError, match="does not bind to vfio-pci"):
        guest.devices.bind_vfio(address=ADDRESS, seconds=0.1)
    guest.machine.configure_network(interfaces=[], seconds=1)
    assert [names[0] for names in guest.loaded] == ["vfio_pci", "virtio_net"]
    setting = tmp_path / "root/proc/sys/net/ipv4/ip_forward"
    setting.parent.mkdir(parents=True)
    guest.machine.set_sysctls(values={"net.ipv4.ip_forward": "1"})
    assert setting.read_text() == "1"
