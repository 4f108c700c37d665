"""Errors of VFIO groups, device files and functions of the host, and of the host's IOMMU."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from hawse.errors import VmError
from hawse.monitor.devices.spec_nodes import with_guest_nodes
from hawse.monitor.machine.qemu_warnings import QemuWarnings
from hawse.oci.types import Device
from hawse.planner.devices.device_options import DeviceOptions
from hawse.planner.devices.group_checks import check_tokens, unused_token
from hawse.planner.devices.iommu_backend import by_file
from hawse.planner.devices.named_groups import find_groups
from hawse.vfio import obstacles, resets
from hawse.vfio.allowed import check_allowed
from hawse.vfio.groups import Function, HostGroup, check_free, check_viable, read_group
from hawse.vfio.host import dma_mappings, dma_width, locked_memory
from hawse.vfio.node import file_node
from hawse.vfio.obstacles import Accepted, check_token
from hawse.vfio.requests import find_request
from hawse.vm.qemu_features import Capabilities
from tests.errors.situation import Act
from tests.support.sysfs import FakeSysfs
from tests.support.vfio_host import C, Host


def asks(path: str, major: int = 511, minor: int = 9) -> Act:
    """A container requests a node."""
    device = Device(path=path, type="c", major=major, minor=minor)
    return lambda host: find_request([device], emulated={}, root=host.root)


def group(*drivers: str, then: Callable[[Any, str], Any]) -> Act:
    """The result of ``then`` for the host's group 7, whose functions are bound to these drivers."""

    def act(host: FakeSysfs) -> Any:
        for number, driver in enumerate(drivers):
            host.function(f"0000:3b:00.{number}", group=7, driver=driver)
        return then(read_group(7, root=host.root), host.root)

    return act


def bridge(host: FakeSysfs) -> Any:
    host.function("0000:00:1c.0", group=7, class_code=0x060400)
    return read_group(7, root=host.root)


def hotplug_bridge(host: FakeSysfs) -> Any:
    """A bridge whose driver may do DMA, according to the kernel."""
    host.function("0000:3b:00.0", group=7)
    host.function("0000:00:1c.0", group=7, driver="shpchp", class_code=0x060400)
    return check_viable(read_group(7, root=host.root))


def mediated(host: FakeSysfs) -> Any:
    host.member(7, "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "../../../../devices/pci0000:00/0000:00:02.0")
    return read_group(7, root=host.root)


def beyond_binding(attribute: str, text: str) -> Act:
    """The check of a group with this text in an attribute in sysfs."""

    def act(host: FakeSysfs) -> Any:
        host.function("0000:3b:00.0", group=7)
        host.write(f"sys/kernel/iommu_groups/7/{attribute}", text)
        return obstacles.check(read_group(7, root=host.root), root=host.root)

    return act


def open_elsewhere(host: FakeSysfs) -> Any:
    """The test simulates the kernel's answer; the process is found in a fake /proc."""

    def busy(_path: str, _flags: int) -> int:
        raise OSError(errno.EBUSY, "")

    host.function("0000:3b:00.0", group=7)
    host.write("dev/vfio/7", "")
    host.link("proc/4242/fd/9", f"{host.root}/dev/vfio/7")
    host.write("proc/4242/comm", "qemu-system-x86\n")
    return check_free(read_group(7, root=host.root), root=host.root, open_node=busy)


def binding(*addresses: str, prepare: Callable[[Host], Any] = lambda _host: None) -> Act:
    """Bind functions of a prepared host: 0000:3b:00.0 and .1 are one group, 0000:3c:00.0 is another."""

    def act(fake: FakeSysfs) -> Any:
        host = Host(fake.root)
        prepare(host)
        return host.take(*addresses)

    return act


def routing(host: Host) -> None:
    host.below(C, "net", "net/eth0")
    host.write("proc/net/route", "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n")


def mounted(host: Host) -> None:
    host.below(C, "block", "nvme/nvme0/nvme0n1")
    host.write("sys/class/block/nvme0n1/dev", "259:0\n")
    host.write("proc/self/mountinfo", "29 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n")


def virtual_functions(host: Host) -> None:
    host.write(f"sys/bus/pci/devices/{C}/sriov_numvfs", "2\n")


def in_use(host: Host) -> None:
    host.kernel.users[13] = ["dpdk-testpmd (pid 4242)"]


def held(host: Host) -> None:
    """The write that unbinds the function from its driver does not return."""
    host.kernel.errors["drivers/e1000e/unbind", f"{C}\n"] = -1


def groupless(host: FakeSysfs) -> Any:
    host.write("sys/bus/pci/devices/0000:3b:00.0/vendor", "")
    return find_groups(["3b:00.0"], {}, root=host.root)


def odd_bars(host: FakeSysfs) -> Any:
    host.function("0000:3b:00.0", group=7, resource="0x1 0x2")
    return read_group(7, root=host.root)


def reset_by(methods: str, *, accepted: bool = False) -> Act:
    """A device with these reset methods, and the message before it is passed."""

    def act(host: FakeSysfs) -> Any:
        host.function("0000:3b:00.0", group=7, behind="0000:00:1c.0", resets=methods)
        group_7 = read_group(7, root=host.root)
        obstacles.check(group_7, accepted=Accepted(unresettable=accepted), root=host.root)
        return resets.warning(group_7, root=host.root)

    return act


def interrupts(*chips: str) -> Act:
    """VFIO is configured to work without interrupt remapping; the host has these interrupt controllers."""

    def act(host: FakeSysfs) -> Any:
        host.function("0000:3b:00.0", group=7)
        host.write("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n")
        for number, chip in enumerate(chips):
            host.write(f"sys/kernel/irq/{number}/chip_name", f"{chip}\n")
        return obstacles.check(read_group(7, root=host.root), root=host.root)

    return act


def virtual(token: str) -> Callable[[FakeSysfs], Any]:
    """A virtual function whose physical function is bound to vfio-pci, and Debian 12's QEMU."""

    def act(host: FakeSysfs) -> Any:
        host.function("0000:3b:00.0", group=6)
        host.function("0000:3b:02.0", group=7)
        os.symlink("../0000:3b:00.0", f"{host.root}/sys/bus/pci/devices/0000:3b:02.0/physfn")
        group_7 = read_group(7, root=host.root)
        check_token(group_7, token)
        can = Capabilities("7.2.22", frozenset({"vfio-pci"}), frozenset(), vfio_properties=frozenset({"host"}))
        return check_tokens([group_7], DeviceOptions(vf_token=token), lambda: can)

    return act


def by_files(host: FakeSysfs, backend: str, *, iommu: bool = True, qemu: str = "7.2.22") -> Any:
    """Group 7 is requested by a device file, on a host with device files whose kernel cannot map memory by its file."""
    host.function("0000:3b:00.0", group=7)
    host.device_file("0000:3b:00.0", 0, 510, 0)
    if not iommu:
        os.unlink(f"{host.root}/dev/iommu")
    can = Capabilities(qemu, frozenset(), frozenset(), frozenset() if qemu.startswith("7.") else frozenset({"iommufd"}))
    files, options = [file_node(7, path="/dev/vfio/devices/vfio0", major=510, minor=0)], DeviceOptions(backend=backend)
    groups = [read_group(7, root=host.root)]
    return by_file(groups, files, options, lambda: can, maps_files=lambda: False, root=host.root)[1][0]


def no_files(_host: FakeSysfs) -> Any:
    """A guest whose kernel does not support device files."""
    spec = {"linux": {"devices": [{"path": "/dev/vfio/devices/vfio0", "type": "c"}]}}
    node = replace(file_node(7, path="/dev/vfio/devices/vfio0", major=510, minor=0), guest_group=9)
    [note] = with_guest_nodes(spec, [node], {})[1]
    return note.text


def not_allowed(_host: FakeSysfs) -> Any:
    """devices.allow has only a pattern for other functions."""
    group = HostGroup(7, (Function("0000:3b:00.0", 0x8086, 0x10D3, 0x020000, "vfio-pci", ()),))
    return check_allowed([group], ["0000:81:*"])


def forbidden(host: FakeSysfs) -> Any:
    """The node of group 7 belongs to root, and the runtime runs as another user."""
    host.function("0000:3b:00.0", group=7)
    group_7 = read_group(7, root=host.root)
    host.write("dev/vfio/7", "")
    os.chmod(f"{host.root}/dev/vfio/7", 0)
    os.seteuid(65534)
    try:
        return check_free(group_7, root=host.root)
    finally:
        os.seteuid(0)


def narrow(host: FakeSysfs) -> Any:
    """An Intel IOMMU with three-level page tables."""
    host.write("sys/class/iommu/dmar0/intel-iommu/cap", "1c0000c40660462\n")
    return dma_width.warning(root=host.root)


def not_mapped(iova: int, number: int) -> Act:
    """The host refuses to map memory of a running guest, and QEMU prints an error."""

    def act(_host: FakeSysfs) -> Any:
        errors: list[VmError] = []
        line = (
            f"qemu-system-x86_64: vfio_dma_map(0x55d0, {iova:#x}, 0x1000, 0x7f00) = -{number} ({os.strerror(number)})"
        )
        QemuWarnings(lambda _line: None, errors.append).feed(f"{line}\n".encode())
        raise errors[0]

    return act


def failed_device(_host: FakeSysfs) -> Any:
    """QEMU has stopped a running VM, and printed this error."""
    qemu_warnings = QemuWarnings(lambda _line: None, lambda _error: None)
    qemu_warnings.feed(b"qemu-system-x86_64: vfio_err_notifier_handler(0000:3b:00.0) Unrecoverable error detected.\n")
    raise qemu_warnings.stop_error("internal-error")


SITUATIONS: dict[str, Act] = {
    "A container requests the node of a group that does not exist": asks("/dev/vfio/42"),
    "It requests a device file that does not exist": asks("/dev/vfio/devices/vfio0"),
    "It requests a device without an IOMMU": asks("/dev/vfio/noiommu-0"),
    "The group does not exist": lambda host: read_group(7, root=host.root),
    "The group contains only bridges": bridge,
    "A bridge of the group is bound to another driver than the port driver": hotplug_bridge,
    "A member of the group is a mediated device": mediated,
    "The group's firmware requires memory at fixed addresses": beyond_binding(
        "reserved_regions", "0x00000000000e0000 0x00000000000effff direct\n"
    ),
    "The group has no IOMMU": beyond_binding("name", "vfio-noiommu\n"),
    "Its device is bound to a host driver": group("ixgbe", then=lambda g, _: check_viable(g)),
    "Its device has no driver": group("", then=lambda g, _: check_viable(g)),
    "Some of its devices are not bound to vfio-pci": group("vfio-pci", "ixgbe", "", then=lambda g, _: check_viable(g)),
    "Its node is missing": group("vfio-pci", then=lambda g, root: check_free(g, root=root)),
    "Opening its node is not permitted": forbidden,
    "Another process has its node open": open_elsewhere,
    "The BARs of its device are invalid": odd_bars,
    "The physical function of a virtual function is bound to vfio-pci, and the token is missing": virtual(""),
    "A token is set, and QEMU does not support tokens": virtual("14d63f20-8445-11ea-8900-1f9ce7d5650d"),
    "A function to bind shares its group with others": binding("3b:00.0"),
    "A function to bind is a bridge": binding("3a:00.0"),
    "A function to bind carries a route": binding(C, prepare=routing),
    "A function to bind has a mounted disk": binding(C, prepare=mounted),
    "A function to bind has virtual functions": binding(C, prepare=virtual_functions),
    "The group of a function to bind is in use": binding(C, prepare=in_use),
    "A function to bind is bound for another container": binding(C, prepare=lambda host: host.take(C, owner="web")),
    "The driver of a function to bind does not release it": binding(C, prepare=held),
    "A device file is requested, and the host has no /dev/iommu (a warning)": lambda host: by_files(
        host, "auto", iommu=False
    ),
    "A device file is requested, and QEMU needs a newer kernel for it (a warning)": lambda host: by_files(
        host, "auto", qemu="10.1.0"
    ),
    "A device file is requested, and QEMU supports only groups (a warning)": lambda host: by_files(host, "auto"),
    "All devices are to be passed by files, and QEMU supports only groups": lambda host: by_files(host, "iommufd"),
    "A device file is requested, and the guest kernel has none (a warning)": no_files,
    "Only a bus reset can reset it (a warning)": reset_by("bus"),
    "Nothing can reset it": reset_by("none"),
    "Nothing can reset it, and the configuration accepts that (a warning)": reset_by("none", accepted=True),
    "The host does not remap interrupts, and VFIO allows unsafe interrupts": interrupts("IO-APIC"),
    "VFIO allows unsafe interrupts, and the host does not show whether it remaps interrupts": interrupts(),
    "QEMU may not lock memory (a warning)": lambda _host: locked_memory.warning(8 << 20, 0, confined=True),
    "The host's limit of DMA mappings is low and cannot be raised (a warning)": lambda _host: dma_mappings.sentence(
        65535, dma_mappings.entries(1024), dma_mappings.parameter()
    ),
    "The host's IOMMU has few address bits (a warning)": narrow,
    "The host kernel's limit of DMA mappings is reached": not_mapped(0xFFFF0000, errno.ENOSPC),
    "QEMU may not lock the memory that a program maps": not_mapped(0xFFFF0000, errno.ENOMEM),
    "A program maps an IOVA that the host's IOMMU does not translate": not_mapped(0xFEE00000, errno.EINVAL),
    "A device reports an uncorrectable error (PCI Express AER)": failed_device,
    "The configuration does not allow a device": not_allowed,
    "The name of a device to attach is invalid": lambda host: find_groups(["eth0"], {}, root=host.root),
    "A device to attach is not a function of the host": lambda host: find_groups(["3b:00.0"], {}, root=host.root),
    "A device to attach has no IOMMU group": groupless,
    "A token is given that nothing needs (a warning)": lambda _host: unused_token([], DeviceOptions(vf_token="x"))[0],
}  # fmt: skip
