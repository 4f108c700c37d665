"""Binding where something is wrong: damaged records, unreadable files, a child that is killed, a lock that is held."""

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
from hawse.vfio import bindings, targets, variants
from hawse.vfio.binding import bind
from hawse.vfio.bindings import Record
from hawse.vfio.writes import Outcome, Write
from tests.support.vfio_host import BEFORE, A, B, C, Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Functions on their own drivers."""
    return Host(str(tmp_path))


def test_a_damaged_record_does_not_keep_a_function_from_coming_back(host: Host) -> None:
    """The caller's record is the better one."""
    records = host.take(C)
    host.write(f"run/hawse.bindings/{C}.json", "{")
    host.give_back(*records)
    assert (host.state(), os.listdir(host.directory)) == (BEFORE, [])


def test_functions_come_back_with_the_records_of_their_owner_only(host: Host) -> None:
    [record] = host.take(C, owner="pod")
    host.give_back(replace(record, owner="another"))
    assert (host.state()[C], host.records()) == (("vfio-pci", "vfio-pci"), [record])
    bindings.remove(host.directory, C)
    host.give_back(record)
    assert host.state() == BEFORE, "a record that is gone on disk is no reason to leave the function"


def test_what_the_user_has_bound_stays_the_users(host: Host) -> None:
    """A sandbox uses it and does not give it back; and the next sandbox takes over what a dead one has bound."""
    [mine] = host.take(C)
    assert host.take(C, owner="pod", lives=False) == []
    assert host.records() == [mine]
    host.take(A, B, owner="dead")
    taken = host.take(A, B, C, owner="pod", lives=False)
    assert [(record.address, record.owner) for record in taken] == [(A, "pod"), (B, "pod")]
    assert [record.owner for record in host.records()] == ["pod", "pod", ""]


def test_a_living_sandbox_may_bind_its_own_function_again(host: Host) -> None:
    [record] = host.take(C, owner="pod")
    assert host.take(C, owner="pod") == []
    assert host.records() == [record]


def test_one_name_of_a_driver_is_as_good_as_the_other(host: Host) -> None:
    host.take(C)
    seen = list(host.kernel.seen)
    assert host.take(C, driver="vfio_pci") == []
    assert host.kernel.seen == seen


def test_a_driver_that_the_user_names_is_not_kept_from_a_device_on_the_generic_ones_denylist(host: Host) -> None:
    """The denylist is vfio-pci's."""
    host.function("0000:52:00.0", group=52, driver="e1000e", device_id=0x37C8)
    host.kernel.native["0000:52:00.0"] = "e1000e"
    host.driver("qat-vfio-pci")
    for name in ("vfio-pci", "vfio_pci", ""):
        with pytest.raises(DeviceError, match="it is on its denylist"):
            host.take("0000:52:00.0", driver=name)
    [record] = host.take("0000:52:00.0", driver="qat-vfio-pci")
    assert record.vfio == "qat-vfio-pci"


def test_an_override_that_hawse_made_is_not_taken_for_the_users(host: Host) -> None:
    """A crash left it, or a change of driver; what the user had set before is what comes back."""
    host.write(f"sys/bus/pci/devices/{C}/driver_override", "mine\n")
    [first] = host.take(C)
    assert first.override == "mine"
    host.driver("my-vfio-pci")
    [second] = host.take(C, driver="my-vfio-pci")
    assert (second.driver, second.override) == ("e1000e", "mine")
    host.write(f"sys/bus/pci/devices/{C}/driver_override", "changed\n")
    [third] = host.take(C, driver="vfio-pci")
    assert third.override == "changed", "somebody else has changed it since"


def test_a_function_that_its_own_driver_has_again_is_recorded_as_it_is_now(host: Host) -> None:
    bindings.write(host.directory, Record(C, "old", "", "vfio-pci"))
    [record] = host.take(C)
    assert record == Record(C, "e1000e", "", "vfio-pci")


def test_a_group_is_asked_once_for_its_holders(host: Host) -> None:
    asked: list[int] = []

    def holders(group: int) -> list[str]:
        asked.append(group)
        return []

    host.kernel.effects = replace(host.kernel.effects, holders=holders)
    records = host.take(A, B, C)
    assert asked == [12, 13]
    host.give_back(*records)
    assert asked == [12, 13, 12, 13]


def test_a_function_that_left_its_group_comes_back(host: Host) -> None:
    records = host.take(C)
    os.unlink(f"{host.root}/sys/bus/pci/devices/{C}/iommu_group")
    host.kernel.effects = replace(host.kernel.effects, holders=lambda _group: ["somebody"])
    host.give_back(*records)
    assert host.state() == BEFORE


def test_a_child_that_is_killed_is_reported_and_undone(host: Host) -> None:
    killed = [True]

    def carry_out(writes: Sequence[Write], seconds: float) -> Outcome:
        if killed:
            killed.pop()
            return Outcome(host.kernel(writes[:1], seconds).done)
        return host.kernel(writes, seconds)

    host.kernel.effects = replace(host.kernel.effects, carry_out=carry_out)
    with pytest.raises(DeviceError, match="was interrupted: the process that writes was killed") as caught:
        host.take(C)
    assert caught.value.message.startswith(f"{C}: writing '{C}' to {host.root}/sys/bus/pci/drivers/e1000e/unbind")
    assert (host.state(), host.records()) == (BEFORE, [])


def test_an_interrupt_that_cannot_be_undone_is_reported_with_the_function(host: Host) -> None:
    """Without a word of it the user would not know that the function is left without a driver."""

    def carry_out(writes: Sequence[Write], seconds: float) -> Outcome:
        host.kernel(writes, seconds)
        host.kernel.picky = {"e1000e"}
        raise KeyboardInterrupt

    interrupts = iter([carry_out])
    effects = replace(host.kernel.effects, carry_out=lambda *arguments: next(interrupts, host.kernel)(*arguments))
    with pytest.raises(DeviceError, match=f"^KeyboardInterrupt; and undoing it failed: {C}: e1000e did not take it"):
        bind([C], directory=host.directory, root=host.root, effects=effects)
    assert [record.address for record in host.records()] == [C]


@pytest.mark.parametrize(("hangs", "waits"), [(True, [30.0, 30.0, 2.0, 30.0]), (False, [30.0] * 4)])
def test_undoing_waits_little_for_the_function_whose_write_hangs(host: Host, hangs: bool, waits: list[float]) -> None:
    """The kernel holds its lock. The functions before it have all the time."""
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


def test_the_name_of_a_driver_that_makes_no_sense_is_reported(host: Host) -> None:
    os.unlink(f"{host.root}/sys/bus/pci/devices/{C}/driver")
    os.symlink("../../drivers/-x", f"{host.root}/sys/bus/pci/devices/{C}/driver")
    with pytest.raises(DeviceError, match=f"{C}: the name of its driver makes no sense: '-x'"):
        host.take(C)


def test_a_device_without_numbers_cannot_be_looked_up_in_the_denylist(host: Host) -> None:
    host.write(f"sys/bus/pci/devices/{C}/device", "?\n")
    with pytest.raises(DeviceError, match="its vendor and device cannot be read"):
        variants.check_denylist(C, root=host.root)


def test_a_function_without_a_modalias_has_none_to_load_a_driver_by(host: Host) -> None:
    os.unlink(f"{host.root}/sys/bus/pci/devices/{C}/modalias")
    with pytest.raises(HostError, match="the kernel has no PCI driver gone: Module gone not found"):
        variants.provide("gone", C, load=host.kernel.load, seconds=1, root=host.root, modalias=True)


@pytest.mark.parametrize("with_modalias", [False, True])
def test_a_driver_is_loaded_by_the_functions_modalias_only_where_its_name_brings_none(
    host: Host, with_modalias: bool
) -> None:
    asked: list[str] = []

    def load(name: str, _seconds: float) -> str:
        asked.append(name)
        if name == "named":
            host.driver("named")
        return "why not"

    assert variants.provide("named", C, load=load, seconds=1, root=host.root, modalias=with_modalias) == "named"
    assert asked == ["named"]
    with pytest.raises(HostError, match="no PCI driver gone: why not"):
        variants.provide("gone", C, load=load, seconds=1, root=host.root, modalias=with_modalias)
    assert asked[1:] == ["gone", *([host.read(C, "modalias").strip()] if with_modalias else [])]


@pytest.mark.parametrize(
    ("override", "text"), [("(null)\n", ""), ("mine\n", "mine"), ("\n", ""), ("", ""), ("(null)x\n", "(null)x")]
)
def test_an_override_is_read_as_the_kernel_shows_it(host: Host, override: str, text: str) -> None:
    host.write(f"sys/bus/pci/devices/{C}/driver_override", override)
    assert targets.read_override(C, root=host.root) == text


def test_a_record_that_cannot_be_deleted_or_read_is_named(host: Host) -> None:
    path = f"{host.directory}/{C}.json"
    os.makedirs(path)
    with pytest.raises(HostError, match=f"{C}: its record {path} cannot be deleted: Is a directory"):
        bindings.remove(host.directory, C)
    with pytest.raises(DeviceError, match=f"{C}: its record {path} cannot be read: Is a directory") as caught:
        bindings.read(host.directory, C)
    assert caught.value.hint == "the records are root's: run hawse as root"


def test_a_lock_is_waited_for(host: Host) -> None:
    with ExitStack() as first:
        first.enter_context(bindings.locked(host.directory, [C], seconds=0))
        release = threading.Timer(0.1, first.close)
        release.start()
        with bindings.locked(host.directory, [C], seconds=60):
            pass
        release.join()
    assert os.listdir(host.directory) == []


@pytest.mark.parametrize(("size", "is_sound"), [(4095, True), (4096, False)])
def test_an_override_is_less_than_a_page(host: Host, size: int, is_sound: bool) -> None:
    record = Record(C, "e1000e", "x" * size, "vfio-pci")
    bindings.write(host.directory, record)
    assert host.records() == ([record] if is_sound else [])


@pytest.mark.parametrize(
    ("driver", "is_one"),
    [("vfio-pci", True), ("3w-9xxx", True), ("a b", True), ("", False), ("-x", False), (".x", False), ("a/b", False),
     ("a\n", False), ("é", False), ("x" * 128, True), ("x" * 129, False)],
)  # fmt: skip
def test_what_may_be_a_drivers_name(driver: str, is_one: bool) -> None:
    assert bindings.is_driver(driver) is is_one
