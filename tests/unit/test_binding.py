"""Binding functions to VFIO and restoring them, on a fake host with a fake kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hawse.errors import DeviceError, HawseError, HostError, UsageError, from_wire
from hawse.vfio.bind import records as bindings
from hawse.vfio.bind.bind import together
from hawse.vfio.bind.driver_moves import plan_bind, plan_restore
from hawse.vfio.bind.records import Record
from hawse.vfio.bind.sysfs_writes import Outcome, Write
from hawse.vfio.bind.targets import Target, parse_address
from tests.support.vfio_host import BEFORE, A, B, C, Host

PROBE = "drivers_probe"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A fake host whose functions are bound to their native drivers."""
    return Host(str(tmp_path))


def steps(plan: list[tuple[str, str]], name: str) -> list[tuple[str, str]]:
    return [
        (path.replace("OVERRIDE", f"devices/{name}/driver_override"), text.replace("IT", name)) for path, text in plan
    ]


TO_VFIO = [("OVERRIDE", "vfio-pci\n"), ("drivers/e1000e/unbind", "IT\n"), (PROBE, "IT\n")]
FROM_VFIO = [("OVERRIDE", "e1000e\n"), ("drivers/vfio-pci/unbind", "IT\n"), (PROBE, "IT\n")]


@pytest.mark.parametrize(
    ("driver", "plan"),
    [("e1000e", TO_VFIO), ("", [("OVERRIDE", "vfio-pci\n"), (PROBE, "IT\n")])],
)
def test_plan_that_binds_a_function_to_vfio(driver: str, plan: list[tuple[str, str]]) -> None:
    writes = plan_bind(Target(A, 12, driver, ""), "vfio-pci")
    assert [(write.path.removeprefix("/sys/bus/pci/"), write.text) for write in writes] == steps(plan, A)


@pytest.mark.parametrize(
    ("now", "before", "plan"),
    [
        (("vfio-pci", "vfio-pci"), ("e1000e", ""), [*FROM_VFIO, ("OVERRIDE", "\n")]),
        (("vfio-pci", "vfio-pci"), ("e1000e", "mine"), [*FROM_VFIO, ("OVERRIDE", "mine\n")]),
        (("vfio-pci", "vfio-pci"), ("e1000e", "e1000e"), FROM_VFIO),
        (("vfio-pci", "vfio-pci"), ("", ""), [("drivers/vfio-pci/unbind", "IT\n"), ("OVERRIDE", "\n")]),
        (("vfio-pci", "vfio-pci"), ("", "vfio-pci"), [("drivers/vfio-pci/unbind", "IT\n")]),
        (("", "vfio-pci"), ("e1000e", ""), [("OVERRIDE", "e1000e\n"), (PROBE, "IT\n"), ("OVERRIDE", "\n")]),
        (("e1000e", "vfio-pci"), ("e1000e", ""), [("OVERRIDE", "\n")]),
        (("e1000e", ""), ("e1000e", ""), []),
    ],
    ids=["usual", "with an override", "with its own name", "none before", "parked", "half", "override only", "nothing"],
)
def test_plan_that_restores_a_function(
    now: tuple[str, str], before: tuple[str, str], plan: list[tuple[str, str]]
) -> None:
    writes = plan_restore(Target(A, 12, *now), Record(A, *before, "vfio-pci"))
    assert [(write.path.removeprefix("/sys/bus/pci/"), write.text) for write in writes] == steps(plan, A)


def test_bind_writes_a_record_and_restoring_deletes_it(host: Host) -> None:
    records = host.take("3C:00.0", C, C.upper())
    assert records == [Record(C, "e1000e", "", "vfio-pci")] == host.records()
    assert host.kernel.seen == steps(TO_VFIO, C)
    assert host.state() == BEFORE | {C: ("vfio-pci", "vfio-pci")}
    host.restore_drivers(*records)
    assert host.state() == BEFORE
    assert os.listdir(host.directory) == []


@pytest.mark.parametrize("before", [("", "(null)"), ("", "vfio-pci"), ("e1000e", "e1000e"), ("e1000e", "other")])
def test_every_state_is_restored_exactly(host: Host, before: tuple[str, str]) -> None:
    if not before[0]:
        os.unlink(f"{host.root}/sys/bus/pci/devices/{C}/driver")
    host.write(f"sys/bus/pci/devices/{C}/driver_override", f"{before[1]}\n")
    records = host.take(C)
    assert host.state()[C] == ("vfio-pci", "vfio-pci")
    host.restore_drivers(*records)
    assert host.state()[C] == before


def test_function_that_is_bound_to_vfio_already_is_not_changed(host: Host) -> None:
    first = host.take(C)
    seen = list(host.kernel.seen)
    assert host.take(C) == []
    assert host.take(C, owner="pod") == []
    assert (host.kernel.seen, host.records()) == (seen, first)


def test_part_of_a_group_is_refused(host: Host) -> None:
    with pytest.raises(DeviceError) as caught:
        host.take(A)
    assert caught.value.message == f"{A} shares group 12 with {B} (igb): VFIO accepts a group only as a whole"
    assert "--group" in caught.value.hint
    assert host.state() == BEFORE
    records = host.take(A, group=True)
    assert [(record.address, record.driver) for record in records] == [(A, "e1000e"), (B, "igb")]
    host.restore_drivers(*records)
    assert host.state() == BEFORE


def test_all_functions_of_a_group_can_be_named(host: Host) -> None:
    assert [record.address for record in host.take(B, A)] == [B, A]


def test_function_without_a_driver_does_not_block_its_group_and_is_bound_with_it(host: Host) -> None:
    os.unlink(f"{host.root}/sys/bus/pci/devices/{B}/driver")
    assert [record.address for record in host.take(A)] == [A]
    assert [record.address for record in host.take(A, group=True)] == [B]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("0000:77:00.0", "0000:77:00.0: this host has no such PCI function"),
        ("0000:3a:00.0", "0000:3a:00.0 is a bridge"),
        ("0000:50:00.0", "0000:50:00.0 is not in an IOMMU group"),
        ("0000:51:00.0", "0000:51:00.0 has 2 virtual functions"),
        ("0000:52:00.0", "0000:52:00.0: vfio-pci refuses a 8086:37c8: it is on its denylist"),
        ("0000:53:00.0", "0000:53:00.0: its group 53 is in use: qemu (pid 5) has /dev/vfio/53 open"),
        ("0000:54:00.0", "0000:54:00.0: its class cannot be read"),
        ("0000:55:00.0", "0000:55:00.0: its driver_override cannot be read"),
    ],
)  # fmt: skip
def test_bind_is_refused_before_anything_is_changed(host: Host, address: str, words: str) -> None:
    for number in (50, 51, 53, 54, 55):
        host.function(f"0000:{number}:00.0", group=number, driver="e1000e")
    host.function("0000:52:00.0", group=52, driver="e1000e", device_id=0x37C8)
    os.unlink(f"{host.root}/sys/bus/pci/devices/0000:50:00.0/iommu_group")
    host.write("sys/bus/pci/devices/0000:51:00.0/sriov_numvfs", "2\n")
    host.kernel.users[53] = ["qemu (pid 5)"]
    host.write("sys/bus/pci/devices/0000:54:00.0/class", "?")
    os.unlink(f"{host.root}/sys/bus/pci/devices/0000:55:00.0/driver_override")
    with pytest.raises(DeviceError) as caught:
        host.take(C, address)
    assert caught.value.message.startswith(words)
    assert caught.value.hint or "cannot be read" in words
    assert (host.kernel.seen, host.records()) == ([], [])


def test_function_that_the_host_uses_is_refused(host: Host) -> None:
    host.below(C, "net", "net/eth0")
    host.write("proc/net/route", "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")
    with pytest.raises(DeviceError, match=r"0000:3c:00\.0 is the network interface eth0, and eth0 carries the default"):
        host.take(C)


@pytest.mark.parametrize("driver", ["e1000e", "../vfio", "-vfio", "vfio\n"])
def test_driver_that_is_not_a_vfio_driver_is_refused(host: Host, driver: str) -> None:
    with pytest.raises(UsageError, match="is not a VFIO driver"):
        host.take(C, driver=driver)


def test_variant_driver_is_loaded_and_recorded_by_its_exact_name(host: Host) -> None:
    host.write(
        f"lib/modules/{os.uname().release}/modules.alias", "alias vfio_pci:v00008086d*sv*sd*bc*sc*i* my_vfio_pci\n"
    )
    host.kernel.modules = {"my_vfio_pci": "my-vfio-pci"}
    [record] = host.take(C)
    assert record.vfio == "my-vfio-pci"
    assert host.state()[C] == ("my-vfio-pci", "my-vfio-pci")
    assert host.take(C) == []


def test_driver_that_cannot_be_loaded_is_reported_before_anything_is_changed(host: Host) -> None:
    with pytest.raises(HostError, match="the kernel has no PCI driver odd_vfio_pci: Module odd_vfio_pci not found"):
        host.take(C, driver="odd_vfio_pci")
    assert (host.kernel.seen, host.records()) == ([], [])


def test_change_between_vfio_drivers_keeps_the_first_driver_in_the_record(host: Host) -> None:
    host.take(C)
    host.driver("my-vfio-pci")
    records = host.take(C, driver="my_vfio_pci")
    assert records == [Record(C, "e1000e", "", "my-vfio-pci")]
    host.restore_drivers(*records)
    assert host.state() == BEFORE


def test_failed_change_between_vfio_drivers_restores_driver_and_record(host: Host) -> None:
    first = host.take(C)
    host.driver("my-vfio-pci")
    host.kernel.picky = {"my-vfio-pci"}
    with pytest.raises(DeviceError, match="my-vfio-pci did not bind to it"):
        host.take(C, driver="my-vfio-pci")
    assert (host.state()[C], host.records()) == (("vfio-pci", "vfio-pci"), first)


@pytest.mark.parametrize("step", [("OVERRIDE", "vfio-pci\n"), ("drivers/igb/unbind", "IT\n"), (PROBE, "IT\n")])
@pytest.mark.parametrize(
    ("error", "words"), [(errno.EBUSY, "failed: Device or resource busy"), (-1, "has not returned after 0.2 s")]
)
def test_failure_of_one_function_undoes_all(host: Host, step: tuple[str, str], error: int, words: str) -> None:
    [named] = steps([step], B)
    host.kernel.errors[named] = error
    with pytest.raises(DeviceError) as caught:
        host.take(A, B)
    assert caught.value.message.startswith(f"{B}: writing {named[1].strip()!r} to {host.root}/sys/bus/pci/{named[0]} ")
    assert words in caught.value.message
    assert "undoing" not in caught.value.message
    assert (host.state(), host.records()) == (BEFORE, [])


def test_silent_failure_of_a_probe_is_detected(host: Host) -> None:
    host.kernel.picky = {"vfio-pci"}
    with pytest.raises(DeviceError, match=r"0000:3c:00\.0: vfio-pci did not bind to it: it has no driver") as caught:
        host.take(C)
    assert "dmesg" in caught.value.hint
    assert host.state() == BEFORE


def test_failed_undo_is_reported_with_the_failure_and_keeps_the_record(host: Host) -> None:
    host.kernel.picky = {"vfio-pci", "e1000e"}
    with pytest.raises(DeviceError) as caught:
        host.take(C)
    assert caught.value.message == (
        f"{C}: vfio-pci did not bind to it: it has no driver now; "
        f"undoing it failed as well: {C}: e1000e did not bind to it: it has no driver now"
    )
    assert caught.value.hint == f"when the cause is fixed: `hawse unbind {C}`"
    host.kernel.picky = set()
    host.restore_drivers(*host.records())
    assert (host.state(), host.records()) == (BEFORE, [])


def test_hang_names_the_write_and_is_sent_as_a_device_error(host: Host) -> None:
    host.kernel.errors["drivers/e1000e/unbind", f"{C}\n"] = -1
    with pytest.raises(DeviceError) as caught:
        host.take(C)
    path = f"{host.root}/sys/bus/pci/drivers/e1000e/unbind"
    assert caught.value.message.startswith(f"{C}: writing '{C}' to {path} has not returned after 0.2 s")
    assert type(from_wire(caught.value.to_wire())) is DeviceError


def test_interrupt_undoes_all(host: Host) -> None:
    interrupts = [KeyboardInterrupt()]

    def carry_out(writes: Sequence[Write], seconds: float) -> Outcome:
        if writes[-1].text == f"{B}\n" and interrupts:
            host.kernel(writes[:2], seconds)
            raise interrupts.pop()
        return host.kernel(writes, seconds)

    host.kernel.effects = replace(host.kernel.effects, carry_out=carry_out)
    with pytest.raises(KeyboardInterrupt):
        host.take(A, B)
    assert (host.state(), host.records()) == (BEFORE, [])


def test_function_can_be_restored_after_a_crash_at_any_write(host: Host) -> None:
    """The record is on disk before the first write, so a crash after any write can be undone."""
    for done in range(4):
        record = Record(C, "e1000e", "", "vfio-pci", "pod")
        bindings.write(host.directory, record)
        for path, text in steps(TO_VFIO, C)[:done]:
            host.kernel.react(path, text)
        host.restore_drivers(*bindings.of_owner(host.directory, "pod"))
        assert (host.state(), host.records()) == (BEFORE, []), done


def test_new_bind_after_a_crash_keeps_the_first_driver_in_the_record(host: Host) -> None:
    for done in range(3):
        bindings.write(host.directory, Record(C, "e1000e", "", "vfio-pci", "dead"))
        for path, text in steps(TO_VFIO, C)[:done]:
            host.kernel.react(path, text)
        assert host.take(C, owner="pod", lives=False) == [Record(C, "e1000e", "", "vfio-pci", "pod")]
        host.restore_drivers(*host.records())
        assert host.state() == BEFORE


def test_function_of_a_living_sandbox_is_refused_and_that_of_a_dead_one_is_taken_over(host: Host) -> None:
    host.take(C, owner="one")
    with pytest.raises(DeviceError, match=r"0000:3c:00\.0 is bound for the sandbox one"):
        host.take(C, owner="two")
    stale = host.records()
    assert host.take(C, owner="two", lives=False) == [Record(C, "e1000e", "", "vfio-pci", "two")]
    host.restore_drivers(*stale)
    assert host.state()[C] == ("vfio-pci", "vfio-pci")
    assert bindings.of_owner(host.directory, "one") == []
    host.restore_drivers(*bindings.of_owner(host.directory, "two"))
    assert (host.state(), host.records()) == (BEFORE, [])


def test_nothing_is_restored_while_its_group_is_open(host: Host) -> None:
    records = host.take(A, B, C)
    host.kernel.users[12] = ["qemu (pid 5)"]
    with pytest.raises(DeviceError) as caught:
        host.restore_drivers(*records)
    assert caught.value.message == "; ".join(
        f"{name}: its group 12 is in use: qemu (pid 5) has /dev/vfio/12 open" for name in (A, B)
    )
    assert host.state()[C] == BEFORE[C]
    assert [record.address for record in host.records()] == [A, B]


def test_restoring_waits_for_a_qemu_that_is_ending(host: Host) -> None:
    """The monitor was killed, and the kernel has not closed QEMU's files yet, but /proc no longer shows QEMU."""
    records = host.take(A, B, C, owner="pod")
    ending = [["qemu (pid 5)"], ["another process"], []]
    host.kernel.effects = replace(host.kernel.effects, holders=lambda group: ending.pop(0) if group == 12 else [])
    host.restore_drivers(*records)
    assert (host.state(), host.records(), ending) == (BEFORE, [], [])


@pytest.mark.parametrize(("owner", "attempts"), [("pod", range(2, 100)), ("", range(1, 2))])
def test_user_of_a_group_is_named_after_a_wait_for_sandboxes_and_at_once_otherwise(
    host: Host, owner: str, attempts: range
) -> None:
    records = host.take(C, owner=owner)
    groups: list[int] = []

    def holders(group: int) -> list[str]:
        groups.append(group)
        return ["dpdk (pid 6)"]

    host.kernel.effects = replace(host.kernel.effects, holders=holders)
    with pytest.raises(DeviceError, match=r"0000:3c:00\.0: its group 13 is in use: dpdk \(pid 6\) has /dev/vfio/13"):
        host.restore_drivers(*records)
    assert len(groups) in attempts
    assert host.records() == records


def test_nvswitch_is_not_a_bridge(host: Host) -> None:
    """Its class is that of bridges, but its header type is that of an endpoint."""
    host.function("0000:56:00.0", group=56, driver="e1000e", class_code=0x068000, header=0)
    host.kernel.native["0000:56:00.0"] = "e1000e"
    [record] = host.take("0000:56:00.0")
    host.restore_drivers(record)


def test_function_that_another_program_has_changed_is_not_restored(host: Host) -> None:
    records = host.take(C)
    os.unlink(f"{host.root}/sys/bus/pci/devices/{C}/driver")
    host.bind(C, "igb_uio")
    with pytest.raises(DeviceError, match=r"its driver is now igb_uio, .* bound it to vfio-pci, .* was e1000e"):
        host.restore_drivers(*records)
    assert host.records() == records


def test_record_of_a_vanished_function_is_deleted(host: Host) -> None:
    record = Record("0000:77:00.0", "nvme", "", "vfio-pci")
    bindings.write(host.directory, record)
    host.restore_drivers(record)
    assert (host.kernel.seen, host.records()) == ([], [])


def test_unloaded_native_driver_is_loaded_by_the_functions_modalias(host: Host) -> None:
    records = host.take(C)
    os.rename(f"{host.root}/sys/bus/pci/drivers/e1000e", f"{host.root}/unloaded")
    with pytest.raises(HostError, match="the kernel has no PCI driver e1000e: Module e1000e not found"):
        host.restore_drivers(*records)
    assert host.state()[C] == ("vfio-pci", "vfio-pci")
    host.kernel.modules = {host.read(C, "modalias").strip(): "e1000e"}
    host.restore_drivers(*records)
    assert host.state() == BEFORE


def test_damaged_record_is_not_overwritten_by_bind(host: Host) -> None:
    host.write(f"run/hawse.bindings/{C}.json", "{")
    with pytest.raises(DeviceError, match=rf"{host.directory}/{C}\.json is damaged: it is not JSON"):
        host.take(C)
    assert host.state() == BEFORE


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0000:3b:00.0", "0000:3b:00.0"), ("3b:00.0", "0000:3b:00.0"), ("3B:1F.7", "0000:3b:1f.7"),
        ("10000:01:00.0", "10000:01:00.0"), ("00010000:01:00.0", "10000:01:00.0"), ("00000002:01:00.0", "0002:01:00.0"),
    ],
)  # fmt: skip
def test_addresses_are_normalized_to_the_kernels_form(text: str, address: str) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "3b:00", "3b:20.0", "3b:00.8", "0:3b:00.0", "../3b:00.0", "3b:00.0\n", "3b:00.\u0660"]
)
def test_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a PCI function"):
        parse_address(text)


def test_several_failures_are_combined_into_one_sentence() -> None:
    alone = HostError("a", hint="b")
    assert together([alone]) is alone
    both: HawseError = together([alone, DeviceError("c", hint="d")])
    assert (type(both), both.message, both.hint) == (HostError, "a; c", "b")
