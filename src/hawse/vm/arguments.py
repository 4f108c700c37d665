"""QEMU's command line and hot-plug commands, kept as typed data and rendered at the end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hawse.json_text import Document
from hawse.link import agreed
from hawse.vm.ports import SHARE_BUS, Port, Slot
from hawse.vm.size import translated_mib

SHARE_TAG = "hawse"
NETWORK_MODELS = frozenset({"e1000e", "e1000", "igb", "virtio-net-pci", "vmxnet3"})

# no_timer_check: with remapped interrupts a kernel that counts too few timer ticks early in boot panics ("timer
# doesn't work through Interrupt-remapped IO-APIC": Linux arch/x86/kernel/apic/io_apic.c, check_timer()), and without
# KVM a guest on a busy host gets few ticks. Under KVM the kernel skips the check by itself (arch/x86/kernel/kvm.c).
# init_on_alloc=1, Debian's default: without KVM QEMU keeps the translated code of a page until the guest writes to the
# page. It does not notice when virtiofsd writes to a page that contained code: programs then end in a segmentation
# fault. With this option the guest itself clears each page that it allocates.
# hpiosize=0: the port plan places the I/O windows; otherwise the kernel gives them to the first hotplug ports.
_APPEND = (
    "console=ttyS0 quiet panic=-1 no_timer_check init_on_alloc=1 pci=hpiosize=0 intel_iommu=on iommu.passthrough=0 "
    "rdinit=/init"
)

Command = tuple[str, Document]
#: The command that passes a disk of :mod:`hawse.vm.nvme_disks` to QEMU: the caller creates and sends the file
#: descriptor.
ADD_DISK = "add-fd"
#: The command-line option that corresponds to each QMP command, and the argument that comes first in the option.
_COLD = {
    "netdev_add": ("-netdev", "type"),
    "blockdev-add": ("-blockdev", "driver"),
    "object-add": ("-object", "qom-type"),
    "device_add": ("-device", "driver"),
}


@dataclass(frozen=True)
class VmShape:
    """A VM as its guest sees it. ``share``: "virtiofs", "9p" or "". Memory in MiB.

    ``accel``: "kvm" or "tcg". ``one_thread``: all its CPUs share one host thread
    (:func:`hawse.vm.acceleration.one_thread`).
    ``cold``: the commands that add the devices which are present from the start; they are rendered as options.
    ``address_bits``: the address width of the vIOMMU, 39 or 48.
    """

    qemu: str
    accel: str
    memory_mib: int
    cpus: int
    kernel: str
    initrd: str
    kernel_append: str
    bridges: Sequence[Mapping[str, Any]]
    share: str
    machine_properties: frozenset[str] = frozenset()
    cold: Sequence[Command] = ()
    one_thread: bool = False
    address_bits: int = 48


@dataclass(frozen=True)
class Ends:
    """The host's ends of one VM: paths, and the numbers of the file descriptors that QEMU inherits.

    ``memory`` is the file that holds the guest's RAM. ``share_plugged``: the share's device is present from the start.
    ``incoming``: the VM does not boot but waits for an incoming migration. ``disks``: a file descriptor for each
    ADD_DISK in :attr:`VmShape.cold`.
    """

    memory: str
    share_directory: str
    share_fd: int
    qmp_fd: int
    link_fd: int
    console_fd: int
    share_plugged: bool = False
    incoming: bool = False
    disks: Sequence[int] = ()


#: Properties of the q35 machine that switch off devices which our guests do not use; some QEMU versions lack some.
_OFF = {"usb": "off", "vmport": "off", "smbus": "off", "sata": "off", "i8042": "off", "hpet": "off"}


def render(shape: VmShape, ends: Ends) -> list[str]:
    """QEMU's argument vector."""
    # Keep the guest's memory out of QEMU's core files, and do not merge it with the memory of other guests, which could
    # find out its content by that (QEMU qemu-options.hx, -machine; CVE-2015-2877).
    machine = {"kernel-irqchip": "split", "memory-backend": "ram", "dump-guest-core": "off", "mem-merge": "off"}
    machine |= {name: value for name, value in _OFF.items() if name in shape.machine_properties}
    # The RAM is a shared file: virtiofsd maps it too, and migration skips it (x-ignore-shared; since QEMU 8.0 only
    # where the memory has a name, migration/ram.c, migrate_ram_is_ignored()).
    memory = {"id": "ram", "size": f"{shape.memory_mib}M", "mem-path": ends.memory, "share": True}
    arguments = [
        shape.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none",
        "-name", "hawse",
        "-machine", option("q35", machine),
        "-accel", option(shape.accel, _acceleration(shape)),
        "-cpu", "host" if shape.accel == "kvm" else "max",
        "-m", f"{shape.memory_mib}M", "-smp", str(shape.cpus),
        "-object", option("memory-backend-file", memory),
        "-chardev", _inherited("console", ends.console_fd), "-serial", "chardev:console",
        "-chardev", _inherited("qmp", ends.qmp_fd), "-mon", "chardev=qmp,mode=control",
    ]  # fmt: skip
    if ends.incoming:
        # The restored memory contains the kernel and the initrd already: to read them again would only take time.
        arguments += ["-incoming", "defer"]
    else:
        append = f"{_APPEND} {shape.kernel_append}".strip()
        arguments += ["-kernel", shape.kernel, "-initrd", shape.initrd, "-append", append]
    # With interrupt remapping, VFIO in the guest works without allow_unsafe_interrupts. vfio-pci devices need caching
    # mode so that QEMU sees the guest's mappings (QEMU hw/i386/intel_iommu.c, vtd_iommu_notify_flag_changed).
    devices: list[Mapping[str, Any]] = [
        {"driver": "intel-iommu", "intremap": True, "caching-mode": True, "aw-bits": shape.address_bits},
        {"driver": "virtio-serial-pci", "id": "serial", "bus": "pcie.0", "addr": "2.0", "max_ports": 2},
        {"driver": "virtserialport", "bus": "serial.0", "chardev": "link", "name": agreed.PORT_NAME},
        {"driver": "virtio-rng-pci", "bus": "pcie.0", "addr": "3.0"},
        *shape.bridges,
    ]
    arguments += ["-chardev", _inherited("link", ends.link_fd)]
    if shape.share == "virtiofs":
        arguments += ["-chardev", _inherited("share", ends.share_fd)]
        if ends.share_plugged:
            devices.append(plug_share()[1])
    elif shape.share == "9p":
        # QEMU can neither hot-plug a 9p directory nor save a VM whose guest has mounted one: so the device is present
        # from the start, and the guest does not mount it before the template is saved.
        # "passthrough": QEMU runs as root and gives a file to the user who creates it, or the guest gets the error.
        share = {"id": "share", "path": ends.share_directory, "security_model": "passthrough", "multidevs": "remap"}
        arguments += ["-fsdev", option("local", share)]
        devices.append(
            {"driver": "virtio-9p-pci", "fsdev": "share", "mount_tag": SHARE_TAG, "bus": SHARE_BUS, "addr": "0.0"}
        )
    for device in devices:
        rest = {key: value for key, value in device.items() if key != "driver"}
        arguments += ["-device", option(str(device["driver"]), rest)]
    return arguments + _cold(shape.cold, ends.disks)


def _cold(commands: Sequence[Command], disks: Sequence[int]) -> list[str]:
    """The options for devices that are present from the start; ``disks`` are their file descriptors."""
    arguments: list[str] = []
    descriptors = iter(disks)
    for command, parameters in commands:
        if command == ADD_DISK:
            arguments += ["-add-fd", f"fd={next(descriptors)},set={parameters['fdset-id']}"]
            continue
        name, first = _COLD[command]
        rest = {key: value for key, value in parameters.items() if key != first}
        arguments += [name, option(str(parameters[first]), rest)]
    return arguments


def _acceleration(shape: VmShape) -> Document:
    options: Document = {"thread": "single"} if shape.one_thread else {}
    if shape.accel == "tcg":
        options["tb-size"] = translated_mib(shape.cpus, one_thread=shape.one_thread)
    return options


def plug_share() -> Command:
    """The QMP command that plugs virtiofsd's device; device and chardev are both named "share"."""
    device = {"driver": "vhost-user-fs-pci", "id": "share", "chardev": "share", "tag": SHARE_TAG}
    return ("device_add", device | {"bus": SHARE_BUS, "addr": "0.0"})


def plug_interface(name: str, mac: str, port: Port, function: int, *, alone: bool, vhost: bool) -> list[Command]:
    """The QMP commands that plug a network interface.

    QEMU knows the file descriptors of its backend by the names NAME and NAME-vhost.
    """
    backend: Document = {"type": "tap", "id": name, "fd": name}
    if vhost:
        backend |= {"vhost": True, "vhostfd": f"{name}-vhost"}
    device: Document = {
        "driver": "virtio-net-pci",
        "id": f"nic-{name}",
        "netdev": name,
        "mac": mac,
        "romfile": "",
    }
    device |= {"bus": port.name, "addr": f"0.{function}"} | ({} if alone else {"multifunction": True})
    return [("netdev_add", backend), ("device_add", device)]


def plug_disk(
    name: str, port: Port, *, fdset: int, serial: str, writable: bool, logical: int, physical: int
) -> list[Command]:
    """The QMP commands that plug a block device of the host, whose file descriptor QEMU has as /dev/fdset/FDSET.

    QEMU's locks are off, since several sandboxes may use one device, as containers under runc may. The host's page
    cache is bypassed, so that data are on the device when the guest's flush returns. Errors are reported to the guest:
    by default QEMU stops a VM whose host has no space left (QEMU docs/system/qemu-block-drivers; hw/block/block.c).
    """
    backend: Document = {"driver": "host_device", "node-name": f"disk-{name}", "filename": f"/dev/fdset/{fdset}"}
    backend |= {"read-only": not writable, "cache": {"direct": True}, "aio": "threads", "locking": "off"}
    backend |= {"discard": "unmap"}
    device: Document = {"driver": "virtio-blk-pci", "id": name, "drive": f"disk-{name}", "serial": serial[:20]}
    device |= {"logical_block_size": logical, "physical_block_size": physical, "share-rw": True}
    device |= {"rerror": "report", "werror": "report", "bus": port.name, "addr": "0.0"}
    return [("blockdev-add", backend), ("device_add", device)]


def option(first: str, rest: Mapping[str, Any]) -> str:
    """``first,key=value,...`` in QEMU's option syntax: commas doubled (QEMU util/keyval.c), booleans on and off."""
    return ",".join([_escape(first), *(f"{key}={_escape(value)}" for key, value in rest.items())])


def plug_emulated(slot: Slot, model: str, *, network: bool, owner: str) -> list[Command]:
    """The QMP commands that plug an emulated function; one hub connects all emulated NICs of a VM.

    ``owner`` is the name of the sandbox, from which the MAC address is derived: QEMU would use the same MAC addresses
    in every VM.
    """
    name = device_id(slot)
    device: Document = {"driver": model, "id": name, "bus": slot.bus, "addr": slot.addr}
    if slot.multifunction:
        device["multifunction"] = True
    commands: list[Command] = []
    if network:
        commands.append(("netdev_add", {"type": "hubport", "id": f"net-{name}", "hubid": 0}))
        # No option ROM: the guest does not boot from it, and the firmware has run before the device is plugged.
        device |= {"netdev": f"net-{name}", "romfile": "", "mac": hardware_address(owner, name)}
    if model == "nvme":
        # A jailed QEMU cannot open a file: it is passed the file descriptor (QEMU qapi/misc.json, add-fd). The image
        # is not locked, since no other process has it.
        number = _function_number(slot)
        disk = {"driver": "file", "node-name": f"disk-{name}", "filename": f"/dev/fdset/{number}"}
        commands.append((ADD_DISK, {"fdset-id": number}))
        commands.append(("blockdev-add", disk | {"locking": "off", "discard": "unmap"}))
        device |= {"drive": f"disk-{name}", "serial": name}
    return [*commands, ("device_add", device)]


def plug_host(slot: Slot, address: str, *, rom: bool = False, token: str = "", by_file: bool = False) -> list[Command]:
    """The QMP commands that plug a function of the host.

    ``token`` is the VF token of its physical function (QEMU hw/vfio/pci.c).
    ``by_file``: open the function by its device file and /dev/iommu instead of its group's node (QEMU
    docs/devel/vfio-iommufd.rst). All functions of a group must use one iommufd, since the kernel allows one DMA owner
    for a group (Linux drivers/iommu/iommufd/device.c, iommufd_get_group()): the first function creates it.
    """
    device: Document = {"driver": "vfio-pci", "host": address, "id": device_id(slot)}
    device |= {"bus": slot.bus, "addr": slot.addr, "rombar": int(rom)} | ({"vf-token": token} if token else {})
    if not by_file:
        return [("device_add", device)]
    iommufd = f"iommufd-{slot.group}"
    create: list[Command] = [("object-add", {"qom-type": "iommufd", "id": iommufd})] if slot.index == 0 else []
    return [*create, ("device_add", device | {"iommufd": iommufd})]


def device_id(slot: Slot) -> str:
    """QEMU's id of the device in the slot."""
    return f"vfio-{slot.group}-{slot.index}"


def _function_number(slot: Slot) -> int:
    """Guest bus, slot and function as one number, which is unique among the VM's present devices."""
    _, bus, rest = slot.guest_address.split(":")
    number, _, function = rest.partition(".")
    return int(bus, 16) << 8 | int(number, 16) << 3 | int(function, 16)


def hardware_address(*parts: str) -> str:
    """A MAC address derived from the names: unicast, locally administered (IEEE 802, section 8.4)."""
    digest = bytearray(hashlib.sha256("\0".join(parts).encode()).digest()[:6])
    digest[0] = digest[0] & 0xFC | 0x02
    return digest.hex(":")


def _inherited(name: str, fd: int) -> str:
    return f"socket,id={name},fd={fd}"


def _escape(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")
