"""Failures of binding: damaged records, unreadable files, a killed child, a lock that another process holds."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from hawse.errors import DeviceError, HostError
from hawse.vfio.bind import records as bindings
from hawse.vfio.bind import targets, variants
from hawse.vfio.bind.bind import bind
from hawse.vfio.bind.records import Record
from hawse.vfio.bind.sysfs_writes import Outcome, Write
from tests.support.vfio_host import BEFORE, A, B, C, Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A fake host whose functions are bound to their native drivers."""
    return Host(str(tmp_path))


def test_function_with_a_damaged_record_is_restored(host: Host) -> None:
    """The record of the caller is used."""
    records = host.take(C)
    host.write(f"run/hawse.bindings/{C}.json", "{")
    host.restore_drivers(*records)
    assert (host.state(), os.listdir(host.directory)) == (BEFORE, [])


def test_only_the_owner_on_record_restores_a_function(host: Host) -> None:
    [record] = host.take(C, owner="pod")
    host.restore_drivers(replace(record, owner="another"))
    assert (host.state()[C], host.records()) == (("vfio-pci", "vfio-pci"), [record])
    bindings.remove(host.directory, C)
    host.restore_drivers(record)
    assert host.state() == BEFORE, "the function is restored even if its record was deleted"


def test_function_that_a_user_has_bound_is_not_restored_after_a_sandbox(host: Host) -> None:
    """A sandbox does not restore a function that a user has bound, but takes over that of a dead sandbox."""
    [mine] = host.take(C)
    assert host.take(C, owner="pod", lives=False) == []
    assert host.records() == [mine]
    host.take(A, B, owner="dead")
    taken = host.take(A, B, C, owner="pod", lives=False)
    assert [(record.address, record.owner) for record in taken] == [(A, "pod"), (B, "pod")]
    assert [record.owner for record in host.records()] == ["pod", "pod", ""]


def test_living_sandbox_can_bind_its_own_function_again(host: Host) -> None:
    [record] = host.take(C, owner="pod")
    assert host.take(C, owner="pod") == []
    assert host.records() == [record]


def test_driver_names_with_hyphen_and_underscore_are_equal(host: Host) -> None:
    host.take(C)
    seen = list(host.kernel.seen)
    assert host.take(C, driver="vfio_pci") == []
    assert host.kernel.seen == seen


def test_denylist_of_vfio_pci_does_not_apply_to_another_driver(host: Host) -> None:
    """The denylist belongs to vfio-pci only."""
    host.function("0000:52:00.0", group=52, driver="e1000e", device_id=0x37C8)
    host.kernel.native["0000:52:00.0"] = "e1000e"
    host.driver("qat-vfio-pci")
    for name in ("vfio-pci", "vfio_pci", ""):
        with pytest.raises(DeviceError, match="it is on its denylist"):
            host.take("0000:52:00.0", driver=name)
    [record] = host.take("0000:52:00.0", driver="qat-vfio-pci")
    assert record.vfio == "qat-vfio-pci"


def test_override_that_hawse_has_set_is_not_recorded_as_the_users(host: Host) -> None:
    """A crash or a change of the driver left hawse's override. The one that the user had set before is restored."""
    host.write(f"sys/bus/pci/devices/{C}/driver_override", "mine\n")
    [first] = host.take(C)
    assert first.override == "mine"
    host.driver("my-vfio-pci")
    [second] = host.take(C, driver="my-vfio-pci")
    assert (second.driver, second.override) == ("e1000e", "mine")
    host.write(f"sys/bus/pci/devices/{C}/driver_override", "changed\n")
    [third] = host.take(C, driver="vfio-pci")
    assert third.override == "changed", "another program has changed it since"


def test_function_that_is_bound_to_a_native_driver_again_gets_a_new_record(host: Host) -> None:
    bindings.write(host.directory, Record(C, "old", "", "vfio-pci"))
    [record] = host.take(C)
    assert record == Record(C, "e1000e", "", "vfio-pci")


def test_holders_of_a_group_are_searched_once(host: Host) -> None:
    groups: list[int] = []

    def holders(group: int) -> list[str]:
        groups.append(group)
        return []

    host.kernel.effects = replace(host.kernel.effects, holders=holders)
    records = host.take(A, B, C)
    assert groups == [12, 13]
    host.restore_drivers(*records)
    assert groups == [12, 13, 12, 13]


def test_function_that_has_left_its_group_is_restored(host: Host) -> None:
    records = host.take(C)
    os.unlink(f"{host.root}/sys/bus/pci/devices/{C}/iommu_group")
    host.kernel.effects = replace(host.kernel.effects, holders=lambda _group: ["somebody"])
    host.restore_drivers(*records)
    assert host.state() == BEFORE


def test_killed_child_is_reported_and_undone(host: Host) -> None:
    killed = [True]

    def carry_out(writes: Sequence[Write], seconds: float) -> Outcome:
        if killed:
            killed.pop()
            return Outcome(host.kernel(writes[:1], seconds).done)
        return host.kernel(writes, seconds)

    host.kernel.effects = replace(host.kernel.effects, carry_out=carry_out)
    with pytest.raises(DeviceError, match="was interrupted: the child process that writes was killed") as caught:
        host.take(C)
    assert caught.value.message.startswith(f"{C}: writing '{C}' to {host.root}/sys/bus/pci/drivers/e1000e/unbind")
    assert (host.state(), host.records()) == (BEFORE, [])


def test_interrupt_that_cannot_be_undone_is_reported_with_the_function(host: Host) -> None:
    """Otherwise the user would not know that the function has no driver now."""

    def carry_out(writes: Sequence[Write], seconds: float) -> Outcome:
        host.kernel(writes, seconds)
        host.kernel.picky = {"e1000e"}
        raise KeyboardInterrupt

    interrupts = iter([carry_out])
    effects = replace(host.kernel.effects, carry_out=lambda *arguments: next(interrupts, host.kernel)(*arguments))
    with pytest.raises(DeviceError, match=f"^KeyboardInterrupt; undoing it failed as well: {C}: e1000e did not"):
        bind([C], directory=host.directory, root=host.root, effects=effects)
    assert [record.address for record in host.records()] == [C]


@pytest.mark.parametrize(("hangs", "waits"), [(True, [30.0, 30.0, 2.0, 30.0]), (False, [30.0] * 4)])
def test_undoing_has_a_short_timeout_for_the_function_that_hangs(host: Host, hangs: bool, waits: list[float]) -> None:
    """The kernel holds its lock. The functions before it get the full timeout."""
    waited: list[float] = []

    def carry_out(writes: Sequence[Write], seconds: float) -> Outcome:
        waited.append(seconds)
        if len(waited) == 2:
            host.kernel(writes[:1], seconds)
            return Outcome(1, errno=0 if hangs else errno.EIO, hangs=hangs)
        return host.kernel(writes, seconds)

    effects = replace(host.kernel.effects, carry_out=carry_out)
    with pytest.raises(DeviceError):
        bind([A, B], directory=host.directory, root=host.root, effects=effects)
    assert waited == waits
    assert (host.state(), host.records()) == (BEFORE, [])


def test_invalid_name_of_a_driver_is_reported(host: Host) -> None:
    os.unlink(f"{host.root}/sys/bus/pci/devices/{C}/driver")
    os.symlink("../../drivers/-x", f"{host.root}/sys/bus/pci/devices/{C}/driver")
    with pytest.raises(DeviceError, match=f"{C}: the name of its driver is invalid: '-x'"):
        host.take(C)


def test_device_without_ids_in_sysfs_is_an_error_of_the_denylist_check(host: Host) -> None:
    host.write(f"sys/bus/pci/devices/{C}/device", "?\n")
    with pytest.raises(DeviceError, match="its vendor and device cannot be read"):
        variants.check_denylist(C, root=host.root)


def test_driver_of_a_function_without_a_modalias_cannot_be_loaded(host: Host) -> None:
    os.unlink(f"{host.root}/sys/bus/pci/devices/{C}/modalias")
    with pytest.raises(HostError, match="the kernel has no PCI driver gone: Module gone not found"):
        variants.provide("gone", C, load=host.kernel.load, seconds=1, root=host.root, modalias=True)


@pytest.mark.parametrize("with_modalias", [False, True])
def test_modalias_is_loaded_only_if_the_drivers_name_is_not_enough(host: Host, with_modalias: bool) -> None:
    loaded: list[str] = []

    def load(name: str, _seconds: float) -> str:
        loaded.append(name)
        if name == "named":
            host.driver("named")
        return "why not"

    assert variants.provide("named", C, load=load, seconds=1, root=host.root, modalias=with_modalias) == "named"
    assert loaded == ["named"]
    with pytest.raises(HostError, match="no PCI driver gone: why not"):
        variants.provide("gone", C, load=load, seconds=1, root=host.root, modalias=with_modalias)
    assert loaded[1:] == ["gone", *([host.read(C, "modalias").strip()] if with_modalias else [])]


@pytest.mark.parametrize(
    ("override", "text"), [("(null)\n", ""), ("mine\n", "mine"), ("\n", ""), ("", ""), ("(null)x\n", "(null)x")]
)
def test_override_is_read_in_the_kernels_form(host: Host, override: str, text: str) -> None:
    host.write(f"sys/bus/pci/devices/{C}/driver_override", override)
    assert targets.read_override(C, root=host.root) == text


def test_record_that_cannot_be_deleted_or_read_is_named(host: Host) -> None:
    path = f"{host.directory}/{C}.json"
    os.makedirs(path)
    with pytest.raises(HostError, match=f"{C}: its record {path} cannot be deleted: Is a directory"):
        bindings.remove(host.directory, C)
    with pytest.raises(DeviceError, match=f"{C}: its record {path} cannot be read: Is a directory") as caught:
        bindings.read(host.directory, C)
    assert caught.value.hint == "only root can read the records: run hawse as root"


def test_bind_waits_for_a_lock(host: Host) -> None:
    with ExitStack() as first:
        first.enter_context(bindings.locked(host.directory, [C], seconds=0))
        release = threading.Timer(0.1, first.close)
        release.start()
        with bindings.locked(host.directory, [C], seconds=60):
            pass
        release.join()
    assert os.listdir(host.directory) == []


@pytest.mark.parametrize(("size", "is_sound"), [(4095, True), (4096, False)])
def test_record_with_an_override_of_a_page_is_damaged(host: Host, size: int, is_sound: bool) -> None:
    record = Record(C, "e1000e", "x" * size, "vfio-pci")
    bindings.write(host.directory, record)
    assert host.records() == ([record] if is_sound else [])


@pytest.mark.parametrize(
    ("driver", "is_one"),
    [("vfio-pci", True), ("3w-9xxx", True), ("a b", True), ("", False), ("-x", False), (".x", False), ("a/b", False),
     ("a\n", False), ("é", False), ("x" * 128, True), ("x" * 129, False)],
)  # fmt: skip
def test_valid_names_of_drivers(driver: str, is_one: bool) -> None:
    assert bindings.is_driver(driver) is is_one
