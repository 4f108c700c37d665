"""Disks of emulated NVMe controllers."""

from __future__ import annotations

import os

import pytest

from hawse.config import Config
from hawse.errors import DeviceError
from hawse.monitor.devices import hotplug
from hawse.plan.model import PlugStep
from hawse.planner import confinement
from hawse.vm import nvme_disks
from hawse.vm.arguments import plug_emulated
from hawse.vm.ports import Slot
from tests.support import virtual_time
from tests.support.fake_qmp import FakeQmp

SLOT = Slot(5, 0, "port0", "0.0", False, "0000:01:00.0")


def test_disk_is_zeroed_and_its_size_is_sealed() -> None:
    fd = nvme_disks.make()
    try:
        status = os.fstat(fd)
        assert (status.st_size, status.st_blocks) == (nvme_disks.DISK_BYTES, 0)
        assert os.pwrite(fd, b"data", nvme_disks.DISK_BYTES - 4) == 4
        for act in (
            lambda: os.ftruncate(fd, 0),
            lambda: os.ftruncate(fd, nvme_disks.DISK_BYTES + 1),
            lambda: os.pwrite(fd, b"x", nvme_disks.DISK_BYTES),
        ):
            with pytest.raises(PermissionError):
                act()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("models", "mib"), [([], 0), (["edu", "e1000e"], 0), (["nvme"], 64), (["nvme", "edu", "nvme"], 128)]
)
def test_total_disk_size_counts_nvme_devices(models: list[str], mib: int) -> None:
    assert nvme_disks.total_mib(models) == mib


def step() -> PlugStep:
    return PlugStep(
        group=5, label="emulated nvme", host="", note="", device="vfio-5-0", bus="port0",
        guest_address=SLOT.guest_address, commands=plug_emulated(SLOT, "nvme", network=False, owner="c1"),
    )  # fmt: skip


def test_disk_is_passed_to_qemu_before_its_device_and_removed_after_it() -> None:
    async def story() -> None:
        qmp = FakeQmp()
        open_before = os.listdir("/proc/self/fd")
        await hotplug._plug(step(), qmp)  # type: ignore[arg-type]
        assert qmp.sets == {256: 1}
        assert await hotplug.unplug([step()], qmp, seconds=10) == []  # type: ignore[arg-type]
        assert [command for command, _ in qmp.commands] == [
            "add-fd", "blockdev-add", "device_add", "device_del", "blockdev-del", "remove-fd",
        ]  # fmt: skip
        assert qmp.sent[-1] == ("remove-fd", {"fdset-id": 256})
        assert len(os.listdir("/proc/self/fd")) == len(open_before)

    virtual_time.run(story())


def test_disk_that_cannot_be_created_is_an_error_with_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(nvme_disks, "make", fail)
    with pytest.raises(DeviceError, match="emulated nvme of group 5: cannot make its disk: Cannot allocate memory"):
        virtual_time.run(hotplug._plug(step(), FakeQmp()))  # type: ignore[arg-type]


@pytest.mark.parametrize(("models", "limit"), [("edu", 0), ("nvme", nvme_disks.DISK_BYTES)])
def test_jailed_qemu_may_write_files_only_if_it_can_have_a_disk(
    monkeypatch: pytest.MonkeyPatch, models: str, limit: int
) -> None:
    monkeypatch.setattr(confinement, "jail_tree", lambda *_args, **_options: "/tree")
    plan, notes = confinement.plan_jail(Config(emulated={"5": [models]}), share="virtiofs", filters=True)
    assert plan is not None
    assert plan.file_bytes == limit
    assert notes == []
