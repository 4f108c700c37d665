"""QEMU's whole command line, argument by argument: VMs and their templates depend on every argument."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hawse.vm.arguments import (
    Ends,
    VmShape,
    hardware_address,
    option,
    plug_emulated,
    plug_host,
    render,
)
from hawse.vm.ports import Slot

ENDS = Ends("/m", share_directory="/s,2", share_fd=9, qmp_fd=3, link_fd=4, console_fd=5)
SHAPE = VmShape(
    qemu="/qemu", accel="tcg", memory_mib=512, cpus=2, kernel="/k", initrd="/i", kernel_append="debug a=b",
    bridges=[{"driver": "pcie-root-port", "id": "port0", "bus": "pcie.0", "multifunction": True}], share="virtiofs",
)  # fmt: skip
HEAD = """
/qemu -nodefaults -no-user-config -display none -no-reboot -nic none -name hawse
-machine q35,kernel-irqchip=split,memory-backend=ram,dump-guest-core=off,mem-merge=off
-accel tcg,tb-size=96 -cpu max -m 512M -smp 2
-object memory-backend-file,id=ram,size=512M,mem-path=/m,share=on
-chardev socket,id=console,fd=5 -serial chardev:console
-chardev socket,id=qmp,fd=3 -mon chardev=qmp,mode=control
"""
BOOT = "-kernel /k -initrd /i -append"
APPEND = (
    "console=ttyS0 quiet panic=-1 no_timer_check init_on_alloc=1 pci=hpiosize=0 intel_iommu=on iommu.passthrough=0 "
    "rdinit=/init"
)
LINK = "-chardev socket,id=link,fd=4"
DEVICES = """
-device intel-iommu,intremap=on,caching-mode=on,aw-bits=48
-device virtio-serial-pci,id=serial,bus=pcie.0,addr=2.0,max_ports=2
-device virtserialport,bus=serial.0,chardev=link,name=hawse.link
-device virtio-rng-pci,bus=pcie.0,addr=3.0
-device pcie-root-port,id=port0,bus=pcie.0,multifunction=on
"""
SHARE = "-chardev socket,id=share,fd=9"
FIRST = Slot(5, 0, "port0", "0.0", False, "0000:01:00.0")
SECOND = Slot(5, 1, "bridge0", "2.0", True, "0000:02:02.0")


def words(*parts: str) -> list[str]:
    return " ".join(parts).split()


def test_command_line_with_a_virtiofs_share() -> None:
    expected = [*words(HEAD, BOOT), f"{APPEND} debug a=b", *words(LINK, SHARE, DEVICES)]
    assert render(SHAPE, ENDS) == expected
    plugged = "-device vhost-user-fs-pci,id=share,chardev=share,tag=hawse,bus=port-share,addr=0.0"
    assert render(SHAPE, replace(ENDS, share_plugged=True)) == expected + words(plugged)


def test_kernel_command_line_without_kernel_append_has_no_trailing_space() -> None:
    argv = render(replace(SHAPE, kernel_append=""), ENDS)
    assert argv[argv.index("-append") + 1] == APPEND


def test_restored_vm_has_no_kernel_option() -> None:
    assert render(SHAPE, replace(ENDS, incoming=True)) == words(HEAD, "-incoming defer", LINK, SHARE, DEVICES)


def test_9p_share_is_on_the_command_line() -> None:
    """A comma in the directory's name is doubled, as in every option value."""
    share = "-fsdev local,id=share,path=/s,,2,security_model=passthrough,multidevs=remap"
    device = "-device virtio-9p-pci,fsdev=share,mount_tag=hawse,bus=port-share,addr=0.0"
    assert render(replace(SHAPE, share="9p"), replace(ENDS, incoming=True)) == words(
        HEAD, "-incoming defer", LINK, share, DEVICES, device
    )


def test_vm_without_a_share_has_no_share_device() -> None:
    ends = replace(ENDS, incoming=True, share_plugged=True)
    assert render(replace(SHAPE, share=""), ends) == words(HEAD, "-incoming defer", LINK, DEVICES)


@pytest.mark.parametrize(
    ("change", "old", "new"),
    [
        ({"accel": "kvm"}, "-accel tcg,tb-size=96 -cpu max", "-accel kvm -cpu host"),
        ({"one_thread": True}, "-accel tcg", "-accel tcg,thread=single"),
        (
            {"cpus": 64},
            "-accel tcg,tb-size=96 -cpu max -m 512M -smp 2", "-accel tcg,tb-size=512 -cpu max -m 512M -smp 64",
        ),
        ({"memory_mib": 2048}, "512M", "2048M"),
        ({"cpus": 3}, "-smp 2", "-smp 3"),
        ({"machine_properties": frozenset({"usb", "other"})}, "mem-merge=off ", "mem-merge=off,usb=off "),
        (
            {"machine_properties": frozenset({"usb", "vmport", "smbus", "sata", "i8042", "hpet"})},
            "mem-merge=off ", "mem-merge=off,usb=off,vmport=off,smbus=off,sata=off,i8042=off,hpet=off ",
        ),
        ({"bridges": []}, " -device pcie-root-port,id=port0,bus=pcie.0,multifunction=on", ""),
    ],
)  # fmt: skip
def test_each_field_of_the_vm_changes_only_its_own_arguments(change: dict[str, Any], old: str, new: str) -> None:
    ends = replace(ENDS, incoming=True)
    before = " ".join(render(SHAPE, ends))
    assert old in before
    assert " ".join(render(replace(SHAPE, **change), ends)) == before.replace(old, new)


def test_cold_plugged_devices_come_last() -> None:
    cold = [
        *plug_emulated(FIRST, "nvme", network=False, owner="c1"),
        *plug_host(SECOND, "0000:3b:00.1", rom=True, token="t"),
    ]
    argv = render(replace(SHAPE, cold=cold), replace(ENDS, disks=[77]))
    number = cold[0][1]["fdset-id"]
    assert argv == render(SHAPE, ENDS) + words(
        f"-add-fd fd=77,set={number}",
        f"-blockdev file,node-name=disk-vfio-5-0,filename=/dev/fdset/{number},locking=off,discard=unmap",
        "-device nvme,id=vfio-5-0,bus=port0,addr=0.0,drive=disk-vfio-5-0,serial=vfio-5-0",
        "-device vfio-pci,host=0000:3b:00.1,id=vfio-5-1,bus=bridge0,addr=2.0,rombar=1,vf-token=t",
    )


def test_emulated_functions_of_one_slot_are_multifunction_and_nics_share_a_hub() -> None:
    netdev, device = plug_emulated(SECOND, "igb", network=True, owner="c1")
    assert netdev == ("netdev_add", {"type": "hubport", "id": "net-vfio-5-1", "hubid": 0})
    assert device == (
        "device_add",
        {
            "driver": "igb", "id": "vfio-5-1", "bus": "bridge0", "addr": "2.0", "multifunction": True,
            "netdev": "net-vfio-5-1", "romfile": "", "mac": hardware_address("c1", "vfio-5-1"),
        },
    )  # fmt: skip


@pytest.mark.parametrize("slot", [FIRST, SECOND])
def test_first_function_of_a_group_creates_its_iommufd(slot: Slot) -> None:
    commands = plug_host(slot, "0000:3b:00.0", by_file=True)
    device = plug_host(slot, "0000:3b:00.0")[0][1] | {"iommufd": "iommufd-5"}
    assert commands[-1] == ("device_add", device)
    assert commands[:-1] == ([("object-add", {"qom-type": "iommufd", "id": "iommufd-5"})] if slot is FIRST else [])


def test_mac_addresses_are_local_unicast_and_derived_from_the_names() -> None:
    addresses = [hardware_address(f"c{number}", name) for number in range(64) for name in ("vfio-5-0", "vfio-5-1")]
    assert len(set(addresses)) == 128
    assert all(int(address[:2], 16) & 0b11 == 0b10 for address in addresses)
    assert len({address[:2] for address in addresses}) > 16, "the other six bits of the first byte vary"
    assert all(len(address) == 17 for address in addresses)
    assert hardware_address("a", "bc") != hardware_address("ab", "c")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "a,,b"),
        ({"key": "x,y"}, "a,,b,key=x,,y"),
        ({"yes": True, "no": False, "zero": 0, "one": 1}, "a,,b,yes=on,no=off,zero=0,one=1"),
        ({"empty": ""}, "a,,b,empty="),
    ],
)
def test_options_are_in_qemus_syntax(values: dict[str, object], text: str) -> None:
    assert option("a,b", values) == text
