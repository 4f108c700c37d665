"""QEMU's command line and hot-plug commands; cached capabilities."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hawse.cache import results
from hawse.vm import acceleration, qemu_features
from hawse.vm.arguments import Ends, VmShape, option, plug_emulated, plug_host, plug_interface, plug_share, render
from hawse.vm.ports import Port, Slot

SLOT = Slot(5, 0, "port0", "0.0", False, "0000:01:00.0")


def shape(**changes: Any) -> VmShape:
    fields: dict[str, Any] = {
        "qemu": "/qemu", "accel": "tcg", "memory_mib": 512, "cpus": 2, "kernel": "/k", "initrd": "/i",
        "kernel_append": "", "bridges": [{"driver": "pcie-root-port", "id": "port0", "multifunction": True}],
        "share": "virtiofs", "machine_properties": frozenset({"vmport", "hpet"}),
    }  # fmt: skip
    return VmShape(**fields | changes)


ENDS = Ends("/m", share_directory="/s", share_fd=9, qmp_fd=3, link_fd=4, console_fd=5)


def values(argv: list[str], name: str) -> list[str]:
    return [argv[i + 1] for i, word in enumerate(argv) if word == name]


def test_command_line_has_the_devices_that_guest_vfio_needs_and_no_others() -> None:
    argv = render(shape(), ENDS)
    assert values(argv, "-machine") == [
        "q35,kernel-irqchip=split,memory-backend=ram,dump-guest-core=off,mem-merge=off,vmport=off,hpet=off"
    ], "only properties that this QEMU has"
    assert "intel-iommu,intremap=on,caching-mode=on,aw-bits=48" in values(argv, "-device")
    assert "pcie-root-port,id=port0,multifunction=on" in values(argv, "-device")
    assert "-nodefaults" in argv
    assert {"iommu.passthrough=0", "no_timer_check", "init_on_alloc=1"} <= set(values(argv, "-append")[0].split())


def test_virtiofs_share_is_hot_plugged() -> None:
    command, device = plug_share()
    assert command == "device_add"
    assert not [d for d in values(render(shape(), ENDS), "-device") if "tag=hawse" in d]
    [early] = [d for d in values(render(shape(), replace(ENDS, share_plugged=True)), "-device") if "tag=hawse" in d]
    assert early == "vhost-user-fs-pci,id=share,chardev=share,tag=hawse,bus=port-share,addr=0.0"
    assert early == option(device["driver"], {key: value for key, value in device.items() if key != "driver"})


def test_9p_share_is_cold_plugged() -> None:
    """QEMU cannot hot-plug a 9p directory; a VM can be saved as long as its guest has not mounted it."""
    [device] = [d for d in values(render(shape(share="9p"), ENDS), "-device") if "tag=hawse" in d]
    assert device == "virtio-9p-pci,fsdev=share,mount_tag=hawse,bus=port-share,addr=0.0"


def test_restored_vm_has_the_same_devices_and_no_kernel() -> None:
    boots, waits = render(shape(), ENDS), render(shape(), replace(ENDS, incoming=True))
    assert values(boots, "-device") == values(waits, "-device")
    assert values(waits, "-incoming") == ["defer"]
    assert not set(waits) & {"-kernel", "-initrd", "-append"}


def test_cold_plugged_devices_are_on_the_command_line() -> None:
    commands = plug_emulated(SLOT, "e1000e", network=True, owner="c1")
    argv = render(shape(cold=commands), ENDS)
    assert values(argv, "-netdev") == ["hubport,id=net-vfio-5-0,hubid=0"]
    assert values(argv, "-device")[-1].startswith(
        "e1000e,id=vfio-5-0,bus=port0,addr=0.0,netdev=net-vfio-5-0,romfile=,mac="
    )


def test_cold_plugged_disk_has_its_descriptor_on_the_command_line() -> None:
    argv = render(shape(cold=plug_emulated(SLOT, "nvme", network=False, owner="c1")), replace(ENDS, disks=(9,)))
    assert values(argv, "-add-fd") == ["fd=9,set=256"]
    assert values(argv, "-blockdev")[0].startswith("file,node-name=disk-vfio-5-0,filename=/dev/fdset/256,")
    assert "drive=disk-vfio-5-0" in values(argv, "-device")[-1]


def test_each_disk_has_its_own_fd_set() -> None:
    slots = [Slot(5, n, "port0", f"0.{n}", True, f"0000:{bus}:0{n}.{n}") for bus in ("01", "ff") for n in range(8)]
    sets = [plug_emulated(slot, "nvme", network=False, owner="c1")[0][1]["fdset-id"] for slot in slots]
    assert len(set(sets)) == 16


def test_mac_addresses_differ_between_sandboxes() -> None:
    addresses = {
        plug_emulated(SLOT, "e1000e", network=True, owner=owner)[1][1]["mac"] for owner in ("one", "two", "three")
    }
    assert len(addresses) == 3
    assert all(int(address[:2], 16) & 3 == 2 for address in addresses), "unicast, locally administered"


@pytest.mark.parametrize(
    ("name", "version", "cpus", "expected"),
    [
        ("tcg", "7.2.22", 2, "tcg,thread=single,tb-size=96"),
        ("tcg", "8.0.5", 2, "tcg,thread=single,tb-size=96"),
        ("tcg", "7.2.22", 1, "tcg,tb-size=96"),
        ("tcg", "8.1.0", 2, "tcg,tb-size=96"),
        ("tcg", "11.1.0", 2, "tcg,tb-size=96"),
        ("kvm", "7.2.22", 2, "kvm"),
    ],
)
def test_tcg_uses_one_thread_with_qemu_before_8_1(name: str, version: str, cpus: int, expected: str) -> None:
    """vm/test_acceleration.py tests both threading modes with QEMU 7.2 and 10.0."""
    can = qemu_features.Capabilities(version, frozenset(), frozenset())
    argv = render(shape(accel=name, cpus=cpus, one_thread=acceleration.one_thread(name, can, cpus=cpus)), ENDS)
    assert values(argv, "-accel") == [expected]


def test_cpu_model_is_the_hosts_only_with_kvm() -> None:
    assert values(render(shape(accel="kvm"), ENDS), "-cpu") == ["host"]
    assert values(render(shape(accel="tcg"), ENDS), "-cpu") == ["max"]


@given(st.text(max_size=20), st.text(max_size=20))
def test_commas_in_option_values_are_escaped(first: str, value: str) -> None:
    rendered = option(first, {"key": value}).replace(",,", "")
    assert rendered.count(",") == 1 or ",," in option(first, {"key": value})


def test_emulated_nic_is_plugged_into_the_hub() -> None:
    assert plug_emulated(SLOT, "edu", network=False, owner="c1") == [
        ("device_add", {"driver": "edu", "id": "vfio-5-0", "bus": "port0", "addr": "0.0"})
    ]
    commands = plug_emulated(SLOT, "e1000e", network=True, owner="c1")
    assert [name for name, _ in commands] == ["netdev_add", "device_add"]
    assert commands[0][1]["hubid"] == 0
    assert commands[1][1]["netdev"] == commands[0][1]["id"]


def test_host_function_is_plugged_by_its_address() -> None:
    [(name, arguments)] = plug_host(SLOT, "0000:3b:00.0")
    assert name == "device_add"
    assert arguments == {
        "driver": "vfio-pci", "host": "0000:3b:00.0", "id": "vfio-5-0", "bus": "port0", "addr": "0.0", "rombar": 0,
    }  # fmt: skip


def test_host_function_plugged_by_its_device_file_has_an_iommufd() -> None:
    commands = plug_host(SLOT, "0000:3b:00.0", by_file=True)
    assert commands[0] == ("object-add", {"qom-type": "iommufd", "id": "iommufd-5"})
    assert commands[1][1]["iommufd"] == "iommufd-5"
    assert values(render(shape(cold=commands), ENDS), "-object")[-1] == "iommufd,id=iommufd-5"
    assert values(render(shape(cold=commands), ENDS), "-device")[-1].endswith(",iommufd=iommufd-5")


def test_cached_value_is_read_under_its_key(tmp_path: Path) -> None:
    path = str(tmp_path / "sub" / "answers.json")
    assert results.read(path, ["key", 1]) is None
    results.write(path, ["key", 1], {"a": (1, 2)})
    assert results.read(path, ["key", 1]) == {"a": [1, 2]}
    assert results.read(path, ["key", 2]) is None
    results.write(path, ["key", 2], "other")
    assert results.read(path, ["key", 1]) == {"a": [1, 2]}
    for number in range(20):
        results.write(path, ["key", number + 3], number)
    assert results.read(path, ["key", 2]) is None, "only the last few are kept"
    (tmp_path / "sub" / "answers.json").write_text("{garbled")
    assert results.read(path, ["key", 1]) is None


def test_unwritable_cache_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    results.write(str(tmp_path / "file" / "answers.json"), 1, 2)


@pytest.mark.parametrize(
    ("alone", "vhost", "backend", "device"),
    [
        (True, False, {}, {}),
        (False, False, {}, {"multifunction": True}),
        (True, True, {"vhost": True, "vhostfd": "net0-vhost"}, {}),
    ],
)
def test_interface_is_plugged_with_its_mac_address(
    alone: bool, vhost: bool, backend: dict[str, object], device: dict[str, object]
) -> None:
    port = Port("port-net", 6, io=False, memory=0, prefetchable=0)
    assert plug_interface("net0", "0a:00:00:00:00:02", port, 1, alone=alone, vhost=vhost) == [
        ("netdev_add", {"type": "tap", "id": "net0", "fd": "net0"} | backend),
        (
            "device_add",
            {
                "driver": "virtio-net-pci", "id": "nic-net0", "netdev": "net0", "mac": "0a:00:00:00:00:02",
                "romfile": "", "bus": "port-net", "addr": "0.1",
            } | device,
        ),
    ]  # fmt: skip
