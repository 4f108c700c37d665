"""The guest's chain from function to group: each link of the chain is checked, and errors name the last one reached."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hawse.agent.devices import hardware
from hawse.agent.devices.hardware import bind_vfio
from hawse.agent.system.uevents import Uevents
from hawse.errors import DeviceError
from hawse.monitor.agent.calls import BindVfio, read_answer
from tests.support.patience import wait_until
from tests.support.sysfs import FakeSysfs

ADDRESS = "0000:01:00.0"
FILE = {"number": 3, "major": 244, "minor": 7}


@pytest.fixture
def guest(tmp_path: Path) -> FakeSysfs:
    sysfs = FakeSysfs(str(tmp_path))
    sysfs.write("sys/bus/pci/drivers_probe", "")
    return sysfs


def bind(guest: FakeSysfs, seconds: float = 0.3) -> dict[str, object]:
    uevents = Uevents()
    try:
        answer = bind_vfio(uevents, ADDRESS, seconds=seconds, root=guest.root)
        read_answer(BindVfio(address=ADDRESS, seconds=seconds), answer)
        return answer
    finally:
        uevents.close()


def test_bound_function_is_ready(guest: FakeSysfs) -> None:
    resource = "".join(
        f"0x{start:016x} 0x{end:016x} 0x0\n" for start, end in [(0xFC000000, 0xFC000FFF), *[(0, 0)] * 12]
    )
    guest.function(ADDRESS, group=6, resource=resource)
    guest.node(6, 245, 0)
    expected = {"group": 6, "major": 245, "minor": 0, "bars": [4096, 0, 0, 0, 0, 0], "file": None, "iommu": None}
    assert bind(guest) == expected


def test_bridge_is_removed_and_its_bus_rescanned(guest: FakeSysfs) -> None:
    port = f"{guest.root}/sys/devices/pci0000:00/0000:00:0f.1"
    os.makedirs(f"{port}/pci_bus/0000:02")
    os.makedirs(f"{port}/0000:02:00.0/0000:03:01.0")
    os.makedirs(f"{guest.root}/sys/bus/pci/devices", exist_ok=True)
    os.symlink(f"{port}/0000:02:00.0/0000:03:01.0", f"{guest.root}/sys/bus/pci/devices/0000:03:01.0")
    hardware.rescan_bridge("0000:03:01.0", root=guest.root)
    for path in (f"{port}/0000:02:00.0/remove", f"{port}/pci_bus/0000:02/rescan"):
        assert Path(path).read_text() == "1"
    with pytest.raises(DeviceError, match=r"0000:04:01\.0: its bridge devices cannot be removed and rescanned"):
        hardware.rescan_bridge("0000:04:01.0", root=guest.root)


def test_device_files_are_reported_if_the_kernel_has_them(guest: FakeSysfs) -> None:
    guest.function(ADDRESS, group=6)
    guest.node(6, 245, 0)
    guest.device_file(ADDRESS, 3, 244, 7)
    report = bind(guest)
    assert (report["file"], report["iommu"]) == (FILE, {"major": 10, "minor": 126})


def test_probe_in_progress_is_awaited(guest: FakeSysfs) -> None:
    """PCI hotplug may probe a function by itself: its driver link exists before its device file. A full pipe replaces
    the driver's attribute that takes the device's lock: a write waits until the pipe is read."""
    guest.function(ADDRESS, group=6)
    guest.node(6, 245, 0)
    device = f"{guest.root}/sys/bus/pci/devices/{ADDRESS}"
    os.mkfifo(f"{device}/driver/bind")
    pipe = os.open(f"{device}/driver/bind", os.O_RDWR | os.O_NONBLOCK)
    fill = bytes(fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ))
    assert os.write(pipe, fill) == len(fill)
    with ThreadPoolExecutor(1) as pool:
        bound = pool.submit(bind, guest, 20)
        try:
            wait_until(lambda: Path(f"{device}/driver_override").read_text() == "vfio-pci" or bound.done())
            guest.device_file(ADDRESS, 3, 244, 7)
        finally:
            os.read(pipe, len(fill))
        assert bound.result()["file"] == FILE
    assert os.read(pipe, len(fill)) == ADDRESS.encode()
    os.close(pipe)


def test_probe_that_begins_at_any_moment_is_awaited(guest: FakeSysfs) -> None:
    """PCI hotplug may begin a probe just after the agent has seen that none is in progress."""
    guest.function(ADDRESS, group=6, driver="")
    guest.node(6, 245, 0)
    probes = Path(f"{guest.root}/sys/bus/pci/drivers_probe")
    link = f"{guest.root}/sys/bus/pci/devices/{ADDRESS}/driver"

    def await_probe(_device: str) -> None:
        if os.path.islink(link):
            guest.device_file(ADDRESS, 3, 244, 7)
        else:
            guest.bind(ADDRESS, "vfio-pci")

    uevents = Uevents()
    with ThreadPoolExecutor(1) as pool:
        bound = pool.submit(bind_vfio, uevents, ADDRESS, seconds=20, root=guest.root, await_probe=await_probe)
        wait_until(lambda: probes.read_text() == ADDRESS)
        if not os.path.islink(link):
            guest.bind(ADDRESS, "vfio-pci")
        assert bound.result()["file"] == FILE
    uevents.close()


def test_device_file_without_numbers_is_ignored(guest: FakeSysfs) -> None:
    """Linux creates the directory with every VFIO driver, but the file only with CONFIG_VFIO_DEVICE_CDEV."""
    guest.function(ADDRESS, group=6)
    guest.node(6, 245, 0)
    guest.write(f"sys/bus/pci/devices/{ADDRESS}/vfio-dev/vfio0/uevent", "")
    assert bind(guest)["file"] is None


def test_no_device(guest: FakeSysfs) -> None:
    with pytest.raises(DeviceError, match=r"0000:01:00\.0: the device did not appear in the guest within 0\.3 s"):
        bind(guest)


def test_device_without_a_matching_driver_is_an_error(guest: FakeSysfs) -> None:
    guest.function(ADDRESS, group=6, driver="")
    with pytest.raises(DeviceError, match="does not bind to vfio-pci"):
        bind(guest)
    written = Path(guest.root, "sys/bus/pci/devices", ADDRESS, "driver_override").read_text()
    assert written == "vfio-pci"


def test_driver_that_binds_at_the_second_probe(guest: FakeSysfs) -> None:
    """The kernel shows a function in sysfs before it matches drivers with it."""
    guest.function(ADDRESS, group=6, driver="")
    guest.node(6, 245, 0)
    threading.Timer(0.1, guest.bind, (ADDRESS, "vfio-pci")).start()
    assert bind(guest, seconds=20)["group"] == 6


@pytest.mark.parametrize(("number", "words"), [(errno.ENODEV, ""), (errno.EIO, "Input/output error")])
def test_bus_that_finds_the_function_at_the_second_probe(
    guest: FakeSysfs, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    """The kernel shows a function in sysfs before it is in the list of its bus. Any other error of a probe is
    reported."""
    guest.function(ADDRESS, group=6, driver="")
    guest.node(6, 245, 0)
    write, probed = hardware.write, []

    def refuse_once(path: str, text: str) -> None:
        if path.endswith("drivers_probe"):
            probed.append(text)
            if len(probed) == 1:
                raise OSError(number, "")
            guest.bind(ADDRESS, "vfio-pci")
        write(path, text)

    monkeypatch.setattr(hardware, "write", refuse_once)
    if not words:
        assert bind(guest, seconds=20)["group"] == 6
        return
    with pytest.raises(DeviceError, match=f"does not bind to vfio-pci: {words}"):
        bind(guest, seconds=20)


def test_no_group(guest: FakeSysfs) -> None:
    guest.function(ADDRESS, group=6)
    Path(guest.root, "sys/bus/pci/devices", ADDRESS, "iommu_group").unlink()
    with pytest.raises(DeviceError, match="no iommu_group link appeared"):
        bind(guest)


def test_no_node(guest: FakeSysfs) -> None:
    guest.function(ADDRESS, group=6)
    with pytest.raises(DeviceError, match="in the guest's group 6, but /dev/vfio/6 did not appear"):
        bind(guest)


def test_abandoned_wait_does_not_touch_the_next_function(guest: FakeSysfs) -> None:
    """The host has stopped waiting for the first function, and plugs another one into the same port."""
    failures: list[str] = []
    before = hardware._newest.get(ADDRESS)

    def give_up() -> None:
        try:
            bind(guest, seconds=20)
        except DeviceError as error:
            failures.append(error.message)

    first = threading.Thread(target=give_up)
    first.start()
    while hardware._newest.get(ADDRESS) is before:
        pass
    waiting = Uevents()
    try:
        with pytest.raises(DeviceError, match="did not appear"):
            hardware.bind_virtio(waiting, ADDRESS, seconds=0.5, root=guest.root)
    finally:
        waiting.close()
    first.join()
    assert failures == [f"{ADDRESS}: the wait was abandoned: another function will appear at the same address"]
