"""QEMU's command line and hot-plug commands, as typed data that is rendered last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hawse.vm.ports import Slot

LINK_PORT = "hawse.link"
SHARE_TAG = "hawse"
NETWORK_MODELS = frozenset({"e1000e", "e1000", "igb", "virtio-net-pci", "vmxnet3"})

_APPEND = "console=ttyS0 quiet panic=-1 intel_iommu=on iommu.passthrough=0 rdinit=/init"

Command = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class VmShape:
    """A virtual machine. ``share``: "virtiofs", "9p" or "". Descriptors are the numbers that QEMU inherits."""

    qemu: str
    accel: str
    memory_mib: int
    cpus: int
    kernel: str
    initrd: str
    kernel_append: str
    bridges: Sequence[Mapping[str, Any]]
    share: str
    share_directory: str
    share_fd: int
    qmp_fd: int
    link_fd: int
    console_fd: int
    machine_properties: frozenset[str] = frozenset()


#: Properties of the q35 machine that turn off what no guest of ours uses; some QEMU versions lack some of them.
_OFF = {"usb": "off", "vmport": "off", "smbus": "off", "sata": "off", "i8042": "off", "hpet": "off"}


def render(shape: VmShape) -> list[str]:
    """The argument vector."""
    machine = {"accel": shape.accel, "kernel-irqchip": "split", "memory-backend": "ram"}
    machine |= {name: value for name, value in _OFF.items() if name in shape.machine_properties}
    arguments = [
        shape.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none",
        "-name", "hawse",
        "-machine", option("q35", machine),
        "-cpu", "host" if shape.accel == "kvm" else "max",
        "-m", f"{shape.memory_mib}M", "-smp", str(shape.cpus),
        # Shared, since virtiofsd maps the guest's memory too.
        "-object", option("memory-backend-memfd", {"id": "ram", "size": f"{shape.memory_mib}M", "share": True}),
        "-kernel", shape.kernel, "-initrd", shape.initrd,
        "-append", f"{_APPEND} {shape.kernel_append}".strip(),
        "-chardev", _inherited("console", shape.console_fd), "-serial", "chardev:console",
        "-chardev", _inherited("qmp", shape.qmp_fd), "-mon", "chardev=qmp,mode=control",
    ]  # fmt: skip
    # Remapped interrupts let the guest's VFIO work without allow_unsafe_interrupts; caching mode is what vfio-pci
    # devices need to see the guest's mappings (QEMU hw/i386/intel_iommu.c, vtd_iommu_notify_flag_changed).
    devices: list[Mapping[str, Any]] = [
        {"driver": "intel-iommu", "intremap": True, "caching-mode": True},
        {"driver": "virtio-serial-pci", "id": "serial", "bus": "pcie.0", "addr": "2.0", "max_ports": 2},
        {"driver": "virtserialport", "bus": "serial.0", "chardev": "link", "name": LINK_PORT},
        {"driver": "virtio-rng-pci", "bus": "pcie.0", "addr": "3.0"},
    ]
    arguments += ["-chardev", _inherited("link", shape.link_fd)]
    if shape.share == "virtiofs":
        arguments += ["-chardev", _inherited("share", shape.share_fd)]
        devices.append(
            {"driver": "vhost-user-fs-pci", "chardev": "share", "tag": SHARE_TAG, "bus": "pcie.0", "addr": "4.0"}
        )
    elif shape.share == "9p":
        share = {"id": "share", "path": shape.share_directory, "security_model": "none", "multidevs": "remap"}
        arguments += ["-fsdev", option("local", share)]
        devices.append(
            {"driver": "virtio-9p-pci", "fsdev": "share", "mount_tag": SHARE_TAG, "bus": "pcie.0", "addr": "4.0"}
        )
    for device in [*devices, *shape.bridges]:
        rest = {key: value for key, value in device.items() if key != "driver"}
        arguments += ["-device", option(str(device["driver"]), rest)]
    return arguments


def option(first: str, rest: Mapping[str, Any]) -> str:
    """``first,key=value,...`` in QEMU's option syntax: commas doubled (QEMU util/keyval.c), booleans on and off."""
    return ",".join([_escape(first), *(f"{key}={_escape(value)}" for key, value in rest.items())])


def plug_emulated(slot: Slot, model: str, *, network: bool) -> list[Command]:
    """The QMP commands that plug an emulated function; NICs of one machine meet in one hub."""
    name = device_id(slot)
    device: dict[str, Any] = {"driver": model, "id": name, "bus": slot.bus, "addr": slot.addr}
    if slot.multifunction:
        device["multifunction"] = True
    commands: list[Command] = []
    if network:
        commands.append(("netdev_add", {"type": "hubport", "id": f"net-{name}", "hubid": 0}))
        # No option ROM: nobody boots from it, and firmware has long run when it is plugged.
        device |= {"netdev": f"net-{name}", "romfile": ""}
    return [*commands, ("device_add", device)]


def plug_host(slot: Slot, address: str) -> list[Command]:
    """The QMP commands that plug a function of the host."""
    device = {"driver": "vfio-pci", "host": address, "id": device_id(slot), "bus": slot.bus, "addr": slot.addr}
    return [("device_add", {**device, "rombar": 0})]


def device_id(slot: Slot) -> str:
    """QEMU's name of the function in the slot."""
    return f"vfio-{slot.group}-{slot.index}"


def _inherited(name: str, fd: int) -> str:
    return f"socket,id={name},fd={fd}"


def _escape(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")
